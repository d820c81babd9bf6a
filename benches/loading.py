"""How long a model's start takes beside reading its file, and how much memory it takes beside its weights.

usage: python benches/loading.py SCONCE_BINARY MODEL.gguf [ROUNDS]      (Linux, standard library only)

A file of a gigabyte without a download: `python benches/make_gguf.py llama-3.2-1b q8_0 FILE.gguf`. In each of ROUNDS (5)
the file is read once in pieces of 4 MiB, then a server is started on it twice: with packed weights neither kept nor
there, and with those that a first start has kept. Of each start: the time until /ready says yes, the time until one token
of an answer is there, and the peak resident memory, which is the kernel's, pages of mapped files included. The packed
file is read like the model's, too. Prints one JSON line with medians and worst peaks.
"""

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time

PIECE = 4 << 20
PATIENCE_S = 300


def read_seconds(path):
    started = time.perf_counter()
    room = memoryview(bytearray(PIECE))
    with open(path, "rb", buffering=0) as file:
        while file.readinto(room):
            pass
    return time.perf_counter() - started


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def call(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body and json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def start(binary, path, packed, until=None):
    """Seconds until ready and until the first token, and peak resident bytes. `until` is waited for at the end."""
    port = free_port()
    command = [binary, "serve", path, "--port", str(port), "--served-model-name", "m", "--max-model-len", "512"]
    command += ["--max-num-seqs", "1", "--packed-cache", packed, "--responses-store", "off", "--files-dir", "off"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while True:
            try:
                if call(port, "GET", "/ready")[0] == 200:
                    break
            except OSError:
                pass
            if process.poll() is not None:
                raise RuntimeError(process.stderr.read().decode()[-500:])
            time.sleep(0.005)
        ready = time.perf_counter() - started
        prompt = {"model": "m", "prompt": [1, 2, 3], "max_tokens": 1}
        status, body = call(port, "POST", "/v1/completions", prompt)
        token = time.perf_counter() - started
        if status != 200:
            raise RuntimeError(body.decode()[-500:])
        while until and not until():
            time.sleep(0.05)
        with open(f"/proc/{process.pid}/status") as file:
            peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    finally:
        process.terminate()
        process.wait()
    return ready, token, peak


def main(binary, path, rounds="5"):
    read_seconds(path)
    times = {name: [] for name in ["read_s", "packing", "read_packed_s", "mapped"]}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as folder:
        def kept():
            found = [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".safetensors")]
            return found[0] if found else None

        start(binary, path, folder, kept)
        for _ in range(int(rounds)):
            times["read_s"].append(read_seconds(path))
            times["packing"].append(start(binary, path, "off"))
            times["read_packed_s"].append(read_seconds(kept()))
            times["mapped"].append(start(binary, path, folder))
        packed_bytes = os.path.getsize(kept())
    size = os.path.getsize(path)
    result = {"file": os.path.basename(path), "bytes": size, "packed_bytes": packed_bytes, "rounds": int(rounds)}
    result |= {name: round(statistics.median(times[name]), 3) for name in ["read_s", "read_packed_s"]}
    for name in ["packing", "mapped"]:
        ready, token, peak = zip(*times[name])
        result[name] = {
            "ready_s": round(statistics.median(ready), 3),
            "ready_over_reading": round(statistics.median(ready) / result["read_s"], 2),
            "first_token_s": round(statistics.median(token), 3),
            "peak_over_file": round(max(peak) / size, 3),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
