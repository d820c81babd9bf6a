"""How long loading a model takes beside reading its file, and how much memory it takes beside its weights.

usage: python benches/loading.py SCONCE_BINARY MODEL.gguf [ROUNDS]      (Linux, standard library only)

A file of a gigabyte without a download: `python benches/make_gguf.py llama-3.2-1b q8_0 FILE.gguf`. In each of ROUNDS (5)
the file is read once in pieces of 4 MiB, then `sconce bench engine MODEL pp1` runs once: a process that starts, loads, computes
a token twice and ends. Its peak resident memory is the kernel's, pages of the mapped file included. Prints one JSON line
with medians.
"""

import json
import os
import statistics
import subprocess
import sys
import time

PIECE = 4 << 20


def read_seconds(path):
    started = time.perf_counter()
    room = memoryview(bytearray(PIECE))
    with open(path, "rb", buffering=0) as file:
        while file.readinto(room):
            pass
    return time.perf_counter() - started


def load(binary, path):
    """Seconds, and peak resident bytes."""
    command = [binary, "bench", "engine", path, "pp1", "--runs", "1", "--no-limit", "--json"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status != 0:
        raise RuntimeError(error.decode()[-500:])
    return seconds, usage.ru_maxrss * 1024


def main(binary, path, rounds="5"):
    read_seconds(path)
    reads, loads, peaks = [], [], []
    for _ in range(int(rounds)):
        reads.append(read_seconds(path))
        seconds, peak = load(binary, path)
        loads.append(seconds)
        peaks.append(peak)
    size = os.path.getsize(path)
    result = {"file": os.path.basename(path), "bytes": size, "rounds": int(rounds)}
    result |= {"read_s": statistics.median(reads), "process_s": statistics.median(loads), "peak_bytes": max(peaks)}
    result |= {"time_ratio": statistics.median(loads) / statistics.median(reads), "memory_ratio": max(peaks) / size}
    print(json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
