"""Replicas of the server that SCONCE_BIN names, and clients that keep asking and judge every answer."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

MODEL = "test-model"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def status_of(url):
    """The HTTP status, or None where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status
    except urllib.error.HTTPError as answer:
        return answer.code
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def wait_for(what, is_true, seconds=20):
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"after {seconds} s still not so: {what}"
        time.sleep(0.02)


def program(name):
    """A program of the environment that pytest runs in, or None."""
    beside = os.path.join(os.path.dirname(sys.executable), name)
    return beside if os.access(beside, os.X_OK) else shutil.which(name)


class Process:
    """A child whose output is kept and shown when a test fails."""

    def __init__(self, command):
        self.log = tempfile.NamedTemporaryFile(prefix="elsewhere-", suffix=".log")
        self.child = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)

    def stop(self, seconds=40):
        self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(timeout=seconds)
        finally:
            self.child.kill()

    def output(self):
        with open(self.log.name, encoding="utf-8", errors="replace") as log:
            return log.read()[-4000:]


class Replica:
    """One simulated server; it comes back on the same port."""

    def __init__(self, *flags, model="sim", named=True):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [os.environ["SCONCE_BIN"], "serve", "--port", str(self.port), "--web", "off", *flags]
        self.command += ["--responses-store", "off", "--files-dir", "off"]
        # Otherwise a configuration file names them.
        if named:
            self.command += [model, "--served-model-name", MODEL]
        self.process = None

    def start(self):
        self.process = Process(self.command)
        return self

    def is_ready(self):
        assert self.process.child.poll() is None, self.process.output()
        return status_of(f"{self.url}/ready") == 200

    def wait_ready(self):
        wait_for(f"{self.url} is ready", self.is_ready)
        return self

    def stop(self):
        code = self.process.stop()
        assert code == 0, f"exit code {code} after SIGTERM: {self.process.output()}"

    def answered(self):
        """Requests for chats that it answered with 200."""
        name = 'sconce_http_requests_total{endpoint="/v1/chat/completions",status="200"}'
        return metric(self.url, name)


def metric(url, name):
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as page:
        for line in page.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.rsplit(" ", 1)[1])
    return 0.0


def body(tokens, stream=False, text="Why is the sky blue?"):
    message = {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    if stream:
        message |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(message)


def ask(connection, tokens, stream=False, headers=()):
    """One chat over a kept connection; raises with what is wrong. Returns the answer's headers."""
    sent = {"content-type": "application/json", **dict(headers)}
    connection.request("POST", "/v1/chat/completions", body(tokens, stream), sent)
    answer = connection.getresponse()
    content = answer.read().decode()
    assert answer.status == 200, f"status {answer.status}: {content[:300]}"
    if not stream:
        whole = json.loads(content)
        assert whole["choices"][0]["finish_reason"] == "length", content
        assert whole["usage"]["completion_tokens"] == tokens, content
        return answer.headers
    events = [line[len("data: ") :] for line in content.split("\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]", f"cut off: {content[-300:]}"
    assert json.loads(events[-2])["usage"]["completion_tokens"] == tokens, content[-300:]
    return answer.headers


class Clients:
    """Threads that ask in turn, plainly and in streams, until they are told to stop; the first asks for long answers."""

    def __init__(self, port, threads=6, tokens=12, long_tokens=None):
        self.port, self.tokens, self.long_tokens = port, tokens, long_tokens
        self.failures, self.answers = [], 0
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(number,)) for number in range(threads)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout=30)

    def run(self, number):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        turn, tokens = number, self.long_tokens if self.long_tokens and number == 0 else self.tokens
        while not self.stopping.is_set():
            turn += 1
            try:
                ask(connection, tokens, stream=turn % 2 == 0)
                with self.lock:
                    self.answers += 1
            except Exception as failure:  # whatever it is, it counts
                connection.close()
                with self.lock:
                    self.failures.append(f"{type(failure).__name__}: {failure}")
        connection.close()

    def asked(self, count):
        """Waits until `count` more answers came."""
        before = self.answers
        wait_for(f"{count} more answers", lambda: self.answers >= before + count or self.failures)
