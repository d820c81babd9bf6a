"""Models that come and go in a budget of memory: does every request get its answer, and does the memory come back?

usage: python benches/churn.py SCONCE REQUESTS BUDGET KV_EACH MODEL MODEL ...        (standard library only, Linux)

e.g.   python benches/churn.py target/release/sconce 3000 2GiB 400MiB a.gguf b.gguf dummy:smollm2-360m:q8_0

Starts a server that loads every MODEL on demand within BUDGET (`models_memory`), each with a KV cache of KV_EACH. Four clients
ask another model each time, until REQUESTS were answered. A model answers one prompt greedily, so that each of its answers must
be its first one again, however often it was unloaded in between. Ten times all models are unloaded and what the process
holds for its own (`RssAnon`) is noted. Prints one JSON line; exits with 1 where a request failed, an answer changed, the plan
passed the budget, or the process holds 5 % of the largest resident size more at the end than after the first round.
"""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

CLIENTS = 4
ROUNDS = 10
REQUEST_TIMEOUT_S = 120


def call(address, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as answer:
        return json.load(answer)


def resident_kib(pid, kind):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(kind))


def config(budget, kv, models):
    # Quoted as JSON, which TOML reads as well.
    text = f"[server]\nmodels_memory = {json.dumps(budget)}\nload_on_demand = true\n"
    for at, model in enumerate(models):
        text += f'\n[[models]]\nmodel = {json.dumps(model)}\nserved_model_names = ["m{at}"]\nkv_cache_memory = {json.dumps(kv)}\n'
        text += "max_model_len = 2048\n" + ("idle_unload_s = 2\n" if at % 3 == 0 else "")
    return text


class Churn:
    def __init__(self, address, names):
        self.address, self.names = address, names
        self.answers, self.faults = {}, []
        self.lock = threading.Lock()
        self.left = 0

    def client(self, seed):
        pick = random.Random(seed)
        while True:
            with self.lock:
                if self.left == 0:
                    return
                self.left -= 1
            self.ask(pick.choice(self.names))

    def ask(self, name):
        body = {"model": name, "prompt": "The history of the city begins", "max_tokens": 12, "temperature": 0}
        try:
            said = call(self.address, "/v1/completions", body)["choices"][0]["text"]
        except (OSError, KeyError) as why:
            detail = why.read().decode()[:300] if isinstance(why, urllib.error.HTTPError) else ""
            self.faults.append(f"{name}: {why!r} {detail}")
            return
        first = self.answers.setdefault(name, said)
        if said != first:
            self.faults.append(f"{name}: said {said!r} after {first!r}")

    def round(self, requests, seed):
        self.left = requests
        clients = [threading.Thread(target=self.client, args=(seed * CLIENTS + at,)) for at in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()


def main(binary, requests, budget, kv, *models):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(config(budget, kv, models))
        file.flush()
        command = [binary, "serve", "--config", file.name, "--port", address.rsplit(":", 1)[1]]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return watch(server, address, int(requests), [f"m{at}" for at in range(len(models))])
        finally:
            server.terminate()
            server.wait()


def watch(server, address, requests, names):
    for _ in range(300):
        try:
            call(address, "/ready")
            break
        except OSError:
            if server.poll() is not None:
                sys.exit("the server did not start")
            time.sleep(0.1)
    before = resident_kib(server.pid, "RssAnon")
    churn, empty, begun = Churn(address, names), [], time.time()
    for at in range(ROUNDS):
        churn.round(requests // ROUNDS, at)
        peak = resident_kib(server.pid, "VmHWM")
        for name in names:
            call(address, "/v1/models/unload", {"model": name})
        time.sleep(1)
        empty.append(resident_kib(server.pid, "RssAnon"))
        print(f"round {at + 1} of {ROUNDS}: {empty[-1] >> 10} MiB when all are unloaded", file=sys.stderr, flush=True)
    status = call(address, "/v1/models/status")
    models = status.get("data") or status.get("models")
    grown_share = (empty[-1] - empty[0]) / peak
    result = {
        "requests": requests, "failed": len(churn.faults), "seconds": round(time.time() - begun),
        "loads": sum(model["loads"] for model in models), "evictions": sum(model["evictions"] for model in models),
        "resident_mib": {"before": before >> 10, "peak": peak >> 10, "unloaded": [size >> 10 for size in empty]},
        "grown_share": round(grown_share, 4), "faults": churn.faults[:5],
    }
    print(json.dumps(result))
    return 1 if churn.faults or grown_share > 0.05 else 0


if __name__ == "__main__":
    if len(sys.argv) < 7 or not os.path.exists("/proc/self/status"):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
