"""Closed-loop streaming chat against a server on this machine: output tokens/s, time to first token, inter-token time.

usage: python benches/served.py URL MODEL CLIENTS REQUESTS [OUTPUT_TOKENS]        (standard library only)

Each of CLIENTS sends its next request when its last has ended, until REQUESTS are done. Prompts are random words, about 98
tokens, each another; answers are OUTPUT_TOKENS (128) long where the server takes `ignore_eos`. Prints one JSON line.
"""

import asyncio
import json
import random
import sys
import time
import urllib.parse

WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend"
).split()


def prompt(seed):
    pick = random.Random(seed)
    return "Write a long story about these words: " + " ".join(pick.choice(WORDS) for _ in range(60))


async def request(address, body, seed):
    """(time to first token, gaps, tokens) of one streamed answer, in seconds."""
    body = dict(body, messages=[{"role": "user", "content": prompt(seed)}])
    payload = json.dumps(body).encode()
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n".encode() + payload)
    await writer.drain()
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status.decode().strip()}: {(await reader.read())[-300:].decode()}")
    first, last, gaps, tokens = None, None, [], 0
    while line := await reader.readline():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event.get("usage"):
            tokens = event["usage"]["completion_tokens"]
        if any(choice["delta"].get("content") for choice in event["choices"]):
            now = time.perf_counter()
            if first is None:
                first = now - started
            else:
                gaps.append(now - last)
            last = now
    writer.close()
    return first, gaps, tokens


async def main(url, model, clients, requests, output_tokens):
    address = urllib.parse.urlparse(url)
    body = {"model": model, "stream": True, "temperature": 0, "max_tokens": output_tokens, "ignore_eos": True,
            "stream_options": {"include_usage": True}}
    seeds = iter(range(requests))
    results = []

    async def client():
        for seed in seeds:
            results.append(await request(address, body, seed))

    await request(address, body, -1)  # the first answer warms both sides up
    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    wall = time.perf_counter() - started
    firsts = sorted(first for first, _, _ in results)
    gaps = sorted(gap for _, gaps, _ in results for gap in gaps)
    tokens = sum(tokens for _, _, tokens in results)

    def ms(values, share):
        return round(values[min(int(len(values) * share), len(values) - 1)] * 1000, 1)

    print(json.dumps({
        "clients": clients, "requests": requests, "output_tokens_per_s": round(tokens / wall, 1),
        "ttft_p50_ms": ms(firsts, 0.5), "ttft_p99_ms": ms(firsts, 0.99),
        "itl_p50_ms": ms(gaps, 0.5), "itl_p99_ms": ms(gaps, 0.99), "tokens": tokens,
    }))


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit(__doc__)
    url, model, clients, requests, *rest = sys.argv[1:]
    asyncio.run(main(url, model, int(clients), int(requests), int(rest[0]) if rest else 128))
