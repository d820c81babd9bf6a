"""Perplexity of one GGUF on a fixed text of 20,480 tokens: this server, llama.cpp and Transformers on the same token ids.

usage: python benches/perplexity.py tokens MODEL.gguf TOKENS.json
       python benches/perplexity.py sconce MODEL.gguf TOKENS.json SCONCE_BINARY [SERVE_FLAG...]
       python benches/perplexity.py llama.cpp MODEL.gguf TOKENS.json     (LLAMA_CPP_LIB_PATH names the folder of libllama)
       python benches/perplexity.py transformers MODEL.gguf TOKENS.json  (weights dequantised to F32, computed in F32)

The text is the start of `pydoc_data.topics`, the reference in the standard library of CPython 3.11 (PSF licence): the
help topics in the order of their names. `tokens` writes the first 20,480 ids of it and their digest, the others print one
JSON line. The ids are cut into 40 windows of 512; each is scored alone from its second token on, in all 20,440 tokens.
"""

import hashlib
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

WINDOW = 512
WINDOWS = 40


def text():
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def digest(tokens):
    return hashlib.sha256(",".join(map(str, tokens)).encode()).hexdigest()[:16]


def write_tokens(model, path):
    from llama_cpp import Llama

    llama = Llama(model, vocab_only=True, verbose=False)
    tokens = llama.tokenize(text().encode(), add_bos=False)[: WINDOW * WINDOWS]
    assert len(tokens) == WINDOW * WINDOWS, "the text is too short"
    Path(path).write_text(json.dumps(tokens))
    return {"tokens": len(tokens), "sha256": digest(tokens), "python": sys.version.split()[0]}


def windows(path):
    tokens = json.loads(Path(path).read_text())
    return [tokens[start : start + WINDOW] for start in range(0, len(tokens), WINDOW)], digest(tokens)


def of_rows(rows, window):
    """Sum of the negative logs of what rows of logits give to the token behind each."""
    import numpy as np

    rows = np.asarray(rows, dtype=np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    totals = np.log(np.exp(rows).sum(axis=1))
    return float((totals - rows[np.arange(len(rows)), window[1:]]).sum())


def by_sconce(model, all_windows, binary, flags):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [binary, "serve", model, "--port", str(port), "--max-model-len", str(WINDOW + 16), *flags]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/ready")
                break
            except OSError:
                if server.poll() is not None:
                    raise RuntimeError(server.stderr.read().decode()[-500:])
                time.sleep(0.1)
        listed = json.load(urllib.request.urlopen(f"{address}/v1/models"))
        name, total = listed["data"][0]["id"], 0.0
        for window in all_windows:
            body = {"model": name, "prompt": window, "max_tokens": 1, "echo": True, "logprobs": 0, "temperature": 0}
            request = urllib.request.Request(f"{address}/v1/completions", json.dumps(body).encode())
            request.add_header("Content-Type", "application/json")
            choice = json.load(urllib.request.urlopen(request))["choices"][0]
            total -= sum(choice["logprobs"]["token_logprobs"][1:WINDOW])
        return total
    finally:
        server.terminate()
        server.wait()


def by_llama_cpp(model, all_windows):
    from llama_cpp import Llama

    llama = Llama(model, n_ctx=WINDOW, n_batch=WINDOW, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)
    total = 0.0
    for window in all_windows:
        llama.reset()
        llama.eval(window)
        total += of_rows(llama.scores[: WINDOW - 1].copy(), window)
    return total


def by_transformers(model, all_windows):
    import torch
    from transformers import AutoModelForCausalLM

    folder, file = os.path.split(os.path.abspath(model))
    network = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    total = 0.0
    for window in all_windows:
        with torch.no_grad():
            logits = network(torch.tensor([window]), use_cache=False).logits[0, :-1]
        total += of_rows(logits.numpy(), window)
    return total


def main(engine, model, path, *rest):
    if engine == "tokens":
        print(json.dumps(write_tokens(model, path)))
        return
    all_windows, ids = windows(path)
    started = time.time()
    if engine == "sconce":
        total = by_sconce(model, all_windows, rest[0], rest[1:])
    elif engine == "llama.cpp":
        total = by_llama_cpp(model, all_windows)
    else:
        total = by_transformers(model, all_windows)
    count = sum(len(window) - 1 for window in all_windows)
    result = {"engine": engine, "model": os.path.basename(model), "flags": list(rest[1:]), "ids": ids}
    result |= {"tokens": count, "perplexity": round(math.exp(total / count), 6), "seconds": round(time.time() - started)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
