"""A real server process with a trained run and the real foundation model."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time

import httpx
import pytest
from layout import ROOT


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """`python -m serve` as a process; `url` ends with /v1."""

    def __init__(self, *args, files=None):
        self.port = free_port()
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/v1"
        command = [sys.executable, "-m", "serve", *map(str, args), "--port", str(self.port)]
        command += ["--files", str(files or tempfile.mkdtemp())]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=env)
        end = time.monotonic() + 120
        while not self.is_healthy():
            assert self.process.poll() is None, self.process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.2)

    def is_healthy(self):
        try:
            return httpx.get(f"{self.root}/health").status_code == 200
        except httpx.TransportError:
            return False

    def post(self, path, body, **options):
        return httpx.post(self.root + path, json=body, timeout=120, **options)

    def begin(self, path, body):
        """A socket that has sent a request and not read the answer."""
        content = json.dumps(body).encode()
        lines = (
            f"POST {path} HTTP/1.1",
            "Host: x",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
        )
        opened = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        opened.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        return opened

    def metric(self, name):
        """The value of a metric, or the sum over its labels."""
        lines = httpx.get(f"{self.root}/metrics").text.splitlines()
        found = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)]
        return sum(found)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="session")
def trained_run(command, recipe, tmp_path_factory):
    """A run directory of train.pretrain; its id is "words"."""
    run = tmp_path_factory.mktemp("served") / "words"
    done = command("train.pretrain", recipe, "--run-dir", run, "--model.max-seq-len", "256")
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def served(trained_run):
    """A server with the run "words" and "smollm2-135m"."""
    server = Server(trained_run, "smollm2-135m", "--rows", "4", "--context", "512")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def start_server():
    return Server
