"""Gaps between the chunks of streams, as a client sees them: how long everybody waits at once.

usage: python benches/gaps.py SCONCE_BINARY MODEL [FLAGS FOR sconce serve ...]      (standard library only)

Sixteen clients in a closed loop of four streaming requests each, about 270 tokens in, 128 out. Prints one JSON line:
milliseconds of the gaps between chunks (percentiles and the longest), and the median time to the first one. The client is
Python on the same cores: compare builds in turn, and nothing else.
"""

import http.client
import json
import random
import subprocess
import sys
import threading
import time

from loading import PATIENCE_S, call, free_port

CLIENTS, REQUESTS = 16, 4


def wait_until_ready(port, process):
    while process.poll() is None:
        try:
            if call(port, "GET", "/ready")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.01)
    raise RuntimeError("the server ended before it was ready")


def client(port, seed, gaps, firsts):
    words = random.Random(seed)
    for _ in range(REQUESTS):
        text = " ".join(f"w{words.randrange(5000)}" for _ in range(60))
        body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 128, "stream": True}
        body |= {"ignore_eos": True, "temperature": 0}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        before = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        into = firsts
        for line in connection.getresponse():
            if line.startswith(b"data: {") and b'"content"' in line:
                now = time.perf_counter()
                into.append(1000 * (now - before))
                before, into = now, gaps
        connection.close()


def main(binary, model, *flags):
    port = free_port()
    command = [binary, "serve", model, "--port", str(port), "--served-model-name", "m"]
    command += ["--responses-store", "off", "--files-dir", "off", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(port, process)
        gaps, firsts = [], []
        threads = [threading.Thread(target=client, args=(port, seed, gaps, firsts)) for seed in range(CLIENTS)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()
    gaps.sort()
    result = {f"p{share}": gaps[len(gaps) * share // 100] for share in [50, 90, 99]} | {"longest": gaps[-1]}
    result |= {"first": sorted(firsts)[len(firsts) // 2], "seconds": seconds}
    print(json.dumps({"flags": flags, "gaps": len(gaps)} | {name: round(value, 1) for name, value in result.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
