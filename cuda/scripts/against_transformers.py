"""Sconce beside Transformers on the same device: the same answers, and how fast each is. Part of on-gpu.sh.

Usage: python against_transformers.py agreement --sconce PATH [--device cuda] [--out FILE]
       python against_transformers.py start --sconce PATH [--device cuda] [--out FILE]
       python against_transformers.py rates [--device cuda] [--out FILE]
Needs torch, transformers, tokenizers and safetensors, and no network: models are random ones of known shapes.

agreement: a model of the shape of SmolLM2-135M is written as BF16 and served; it continues prompts of 1 to 4,000 tokens
greedily by 128 tokens. Transformers computes the logits of every answer in F32. Random weights leave the likeliest tokens close
together, so what is asked of each token is that it costs little: the logit that it lacks to the best one, as a part of the
row's spread (best less mean). The same is said of Transformers' own BF16. Exit status 1 when a token lacks more than 0.05 and
more than any of Transformers' own.

start: a model of the shape of Llama-3.2-1B is written as BF16 safetensors; how long it takes from the program's start to the
first token, twice, and from sleep to the first token where the device knows sleep.

rates: Transformers with its static cache, compiled, on the shape of Llama-3.2-1B: output tokens a second of one stream and of 32
(128 tokens in, 256 out), for the same table as `sconce bench engine dummy:llama-3.2-1b tg256 32x128+256`.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

GENERATED = 128
PROMPTS = [1, 2, 31, 128, 1000, 4000]
LACK_MAX = 0.05

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}


def model_of(shape, scale, device, dtype):
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**shape, initializer_range=scale)
    return transformers.LlamaForCausalLM(config).to(device=device, dtype=dtype).eval()


def write_tokenizer(folder, vocab):
    """Bytes, and a name for every other id."""
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    words += [f"<{index}>" for index in range(len(words), vocab)]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    def __init__(self, sconce, folder, device):
        self.started = time.monotonic()
        self.url = f"http://127.0.0.1:{free_port()}"
        port = self.url.rsplit(":", 1)[1]
        command = [sconce, "serve", str(folder), "--device", device, "--port", port, "--max-model-len", "4608"]
        command += ["--packed-cache", "off"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/ready", timeout=5)
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    sys.exit("the server does not become ready")
                time.sleep(0.2)

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            said = answer.read()
            return json.loads(said) if said else None

    def first_token(self):
        """Seconds until a request has its only token."""
        asked = time.monotonic()
        self.post("/v1/completions", {"prompt": [7, 8, 9], "max_tokens": 1})
        return time.monotonic() - asked

    def generate(self, prompt):
        answer = self.post(
            "/v1/completions",
            {
                "prompt": prompt,
                "max_tokens": GENERATED,
                "temperature": 0,
                "ignore_eos": True,
                "logprobs": 0,
                "return_tokens_as_token_ids": True,
            },
        )
        return [int(token.removeprefix("token_id:")) for token in answer["choices"][0]["logprobs"]["tokens"]]

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=60)


def lacks(logits, tokens):
    """What each token lacks to the best of its row, as a part of the row's spread."""
    best = logits.max(dim=-1).values
    chosen = logits.gather(-1, tokens[:, None])[:, 0]
    return (best - chosen) / (best - logits.mean(dim=-1))


def said(lack):
    return {"agree": int((lack == 0).sum()), "lacks_mean": lack.mean().item(), "lacks_max": lack.max().item()}


@torch.inference_mode()
def agreement(arguments):
    exact = model_of(SMOLLM2, 0.06, arguments.device, torch.bfloat16)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        exact.save_pretrained(folder)
        write_tokenizer(Path(folder), SMOLLM2["vocab_size"])
        rounded, exact = exact, model_of(SMOLLM2, 0.06, arguments.device, torch.float32)
        exact.load_state_dict(rounded.state_dict())
        server = Server(arguments.sconce, folder, arguments.device)
        try:
            for length in PROMPTS:
                generator = torch.Generator().manual_seed(length)
                prompt = torch.randint(0, SMOLLM2["vocab_size"], (length,), generator=generator).tolist()
                answer = server.generate(prompt)
                ids = torch.tensor([prompt + answer], device=arguments.device)
                of_answer = slice(length - 1, length - 1 + GENERATED)
                logits = exact(ids).logits[0, of_answer].float()
                own = rounded(ids).logits[0, of_answer].float().argmax(dim=-1)
                row = {"prompt": length, "generated": len(answer)}
                row["sconce"] = said(lacks(logits, ids[0, length:]))
                row["transformers_bf16"] = said(lacks(logits, own))
                results.append(row)
                print(json.dumps(row), flush=True)
        finally:
            server.stop()

    def is_near(row):
        most = max(LACK_MAX, row["transformers_bf16"]["lacks_max"])
        return row["sconce"]["lacks_max"] <= most and row["generated"] == GENERATED

    is_close = all(map(is_near, results))
    return {"shape": SMOLLM2, "lack_max": LACK_MAX, "passed": is_close, "prompts": results}, is_close


@torch.inference_mode()
def start(arguments):
    results = {"starts": []}
    with tempfile.TemporaryDirectory() as folder:
        model_of(LLAMA_1B, 0.02, arguments.device, torch.bfloat16).save_pretrained(folder)
        write_tokenizer(Path(folder), LLAMA_1B["vocab_size"])
        if arguments.device.startswith("cuda"):
            torch.cuda.empty_cache()
        for last in [False, True]:
            server = Server(arguments.sconce, folder, arguments.device)
            try:
                ready = time.monotonic() - server.started
                server.first_token()
                row = {"ready_s": ready, "first_token_s": time.monotonic() - server.started}
                results["starts"].append(row)
                print(json.dumps(row), flush=True)
                if last and arguments.device.startswith("cuda"):
                    results["sleeps"] = []
                    for _ in range(3):
                        asked = time.monotonic()
                        server.post("/sleep", {})
                        row = {"to_sleep_s": time.monotonic() - asked, "awake_first_token_s": server.first_token()}
                        row["first_token_s"] = server.first_token()
                        results["sleeps"].append(row)
                        print(json.dumps(row), flush=True)
            finally:
                server.stop()
    return {"shape": LLAMA_1B, **results}, True


@torch.inference_mode()
def rates(arguments):
    model = model_of(LLAMA_1B, 0.02, arguments.device, torch.bfloat16)
    results = []
    for streams, prompt, generated in [(1, 16, 256), (32, 128, 256)]:
        ids = torch.randint(0, LLAMA_1B["vocab_size"], (streams, prompt), device=arguments.device)
        options = {
            "attention_mask": torch.ones_like(ids),
            "do_sample": False,
            "min_new_tokens": generated,
            "max_new_tokens": generated,
            "pad_token_id": 0,
            "cache_implementation": "static",
        }
        seconds = []
        # The first ones compile.
        for _ in range(5):
            if ids.is_cuda:
                torch.cuda.synchronize()
            started = time.perf_counter()
            model.generate(ids, **options)
            if ids.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        best = min(seconds[2:])
        row = {"streams": streams, "prompt": prompt, "generated": generated, "seconds": seconds}
        row["output_tokens_per_s"] = streams * generated / best
        results.append(row)
        print(json.dumps(row), flush=True)
    return {"shape": LLAMA_1B, "cases": results}, True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["agreement", "start", "rates"])
    parser.add_argument("--sconce", help="the program; not for rates")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", help="JSON goes here, too")
    arguments = parser.parse_args()
    if arguments.part != "rates" and not arguments.sconce:
        parser.error(f"{arguments.part} needs --sconce")
    found, passed = {"agreement": agreement, "start": start, "rates": rates}[arguments.part](arguments)
    found["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    if arguments.device.startswith("cuda"):
        found["device"] = torch.cuda.get_device_name()
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
