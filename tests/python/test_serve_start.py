"""A server that cannot begin says why in one line, before it reads a model where that is known by then."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from command_lines import called  # noqa: E402

import lora_c as lc  # noqa: E402
from lora_c.configs.serving import ServeConfig  # noqa: E402
from lora_c.demo.run import BASE_MODEL  # noqa: E402
from lora_c.serve.listening import bound  # noqa: E402
from lora_c.serve.server import serve  # noqa: E402


def refusal(folder: Path, *words: str) -> str:
    done = called(folder, ["serve", *words])
    assert done.returncode in (1, 2) and done.stdout == ""
    said = [line for line in done.stderr.splitlines() if not line.startswith("note")]
    assert len(said) == 1, done.stderr
    return said[0]


def test_an_address_that_is_taken_is_said_before_the_model_is_read(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refusal(tmp_path, "--model", "nothing", "--port", str(port))
    assert f"--port: expected to listen on 127.0.0.1:{port}" in said and said.endswith("give another --port")


@pytest.mark.parametrize("host", ["192.0.2.1", "bad..name"])
def test_a_host_that_is_none_of_this_machine(tmp_path: Path, host: str) -> None:
    said = refusal(tmp_path, "--model", "nothing", "--port", "0", "--host", host)
    assert f"--host: expected to listen on {host}:0" in said and said.endswith("give another --host")


@pytest.mark.parametrize(("words", "said"), [
    ((), "--model: expected a model folder, got nothing; give --model PATH"),
    (("--model", "nothing"), "nothing: expected a model folder"),
    (("--model", str(BASE_MODEL), "--max-seq-length", "513"), "--max-seq-length: expected at most the model's context of 512"),
    (("--model", "nothing", "--adapters", "nowhere"), "--adapters: expected a folder"),
    (("--model", "nothing", "--api-key-file", "nowhere"), "nowhere: expected a file"),
])  # fmt: skip
def test_what_is_missing_or_wrong(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    found = refusal(tmp_path, "--port", "0", *words)
    assert said in found and "--run" not in found


def test_of_two_that_read_their_models_at_a_time_one_gets_the_address() -> None:
    first = bound(ServeConfig(port=0))
    config = ServeConfig(port=first.getsockname()[1])
    with first, bound(config) as second:  # neither listens yet
        first.listen()
        with pytest.raises(lc.ConfigError, match="port: expected to listen"):
            begin: Any = serve
            begin(None, None, config, second, [], None)
