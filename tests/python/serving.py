"""A real server in a process of its own, on the model that ships, with adapters of random values."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

import lora_c as lc
from lora_c.demo.run import BASE_MODEL

HELLO: Any = [{"role": "user", "content": "Hello, who are you?"}]


def write_adapter(folder: Path, seed: int, **options: Any) -> Path:
    """An adapter whose answers are its own."""
    model = lc.load_model(BASE_MODEL, progress=False)
    given: dict[str, Any] = {"r": 4, "lora_alpha": 2, "target_modules": "all-linear", "init_lora_weights": False}
    model.add_adapter(lc.LoraConfig(**(given | {"seed": seed} | options)))
    model.save_adapter(folder)
    return folder


def write_long_model(folder: Path) -> Path:
    """The model that ships, with room for answers that take seconds."""
    shutil.copytree(BASE_MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16_384}))
    return folder


def metrics_of(server: Server) -> dict[str, float]:
    """Numbers of /metrics by name and labels."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line and line[0] != "#")}


def within(seconds: float, is_so: Callable[[], bool]) -> bool:
    """Whether something comes true in some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_so():
            return True
        time.sleep(0.02)
    return is_so()


class Server:
    """One that runs.

    Attributes
    ----------
    url : str
        Its address.
    process : subprocess.Popen
        The process.
    errors : list of str
        Lines of standard error so far.
    """

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url, self.errors = process, url, []
        self.port = int(url.rpartition(":")[2])
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """Send JSON, or bytes as they are."""
        given = {"content": body} if isinstance(body, bytes) else {"json": body}
        return httpx.post(self.url + path, **given, timeout=60, **options)

    def said(self, model: str | None = None, text: str = "Hello, who are you?", **options: Any) -> str:
        """A greedy answer."""
        given = {"temperature": 0, "max_tokens": 12} | options
        body = {"messages": [{"role": "user", "content": text}], "model": model} | given
        response = self.post("/v1/chat/completions", body)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])


@contextmanager
def serving(*words: Any, model: Path = BASE_MODEL, **variables: str) -> Iterator[Server]:
    """Start one on a free port, end it with SIGTERM; it must have ended in order, without a fault in its log."""
    command = [sys.executable, "-m", "lora_c", "serve", "--model", str(model), "--port", "0", *map(str, words)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        env=os.environ | {"LORA_C_API_KEY": ""} | variables,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    server, found = None, None
    try:
        for line in process.stdout:
            if found := re.search(r"listening (http://\S+) ", line):
                break
        assert found is not None, process.stderr.read()
        server = Server(process, found[1])
        yield server
        if process.poll() is None:
            process.terminate()
        assert process.wait(60) == 0, server.errors
        server.reader.join()
        assert not any("Traceback" in line for line in server.errors), "".join(server.errors)
    finally:
        process.kill()
        process.wait()
        if server is not None:
            server.reader.join()
        process.stdout.close()
        process.stderr.close()
