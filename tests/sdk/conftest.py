"""Starts the server that SCONCE_BIN names, once a model, and hands out its address."""

import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import pytest

API_KEY = "sk-test-only"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_ready(process, url, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {process.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    raise RuntimeError(f"the server was not ready after {seconds} s")


class Server:
    def __init__(self, model, *flags):
        self.port = free_port()
        self.model = model
        self.url = f"http://127.0.0.1:{self.port}"
        command = [os.environ["SCONCE_BIN"], "serve", model, "--port", str(self.port), "--api-key", API_KEY]
        self.folder = tempfile.TemporaryDirectory()
        store = os.path.join(self.folder.name, "responses.db")
        files = os.path.join(self.folder.name, "files")
        flags = ["--served-model-name", "test-model", "--responses-store", store, "--files-dir", files, *flags]
        self.process = subprocess.Popen([*command, *flags])

    def wait_ready(self, seconds):
        wait_ready(self.process, self.url, seconds)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=40)
        finally:
            self.process.kill()
            self.folder.cleanup()


@pytest.fixture(scope="session", params=["sim", "real"])
def server(request):
    model = "sim"
    if request.param == "real":
        model = os.environ.get("SCONCE_REAL_MODEL_GGUF")
        if not model:
            pytest.skip("skipped: SCONCE_REAL_MODEL_GGUF names no model file")
    running = Server(model)
    try:
        running.wait_ready(60)
        running.kind = request.param
        yield running
    finally:
        code = running.stop()
    assert code == 0, f"after SIGTERM the server ended with exit code {code}"


@pytest.fixture(scope="session")
def reasoning_server():
    """A model whose answers are taken to begin with reasoning."""
    running = Server("sim", "--reasoning-parser", "deepseek_r1")
    try:
        running.wait_ready(60)
        yield running
    finally:
        code = running.stop()
    assert code == 0, f"after SIGTERM the server ended with exit code {code}"
