"""Names on the Hugging Face Hub: from a cache without a network, and from a server that answers as the Hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import lora_c as lc
from lora_c.errors import AdapterError, CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put_into_cache(cache: Path, repo: str, folder: Path, commit: str = COMMIT, ref: str = "main") -> Path:
    """Lay a folder out as huggingface_hub does: blobs by their digest, links to them in the snapshot, a ref."""
    home = cache / ("models--" + repo.replace("/", "--"))
    for file in folder.iterdir():
        blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(file.read_bytes())
        link = home / "snapshots" / commit / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / ref).write_text(commit)
    return home / "snapshots" / commit


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the Hub is never asked."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def in_a_shell(*args: str, cache: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"} | variables
    return subprocess.run(
        [sys.executable, "-m", "lora_c", *args], capture_output=True, text=True, env=environment, timeout=120
    )


def test_a_model_in_the_cache_is_loaded_by_its_name(cache: Path, tiny_model_dir: Path) -> None:
    put_into_cache(cache, "someone/tiny-model", tiny_model_dir)
    model = lc.load_model("someone/tiny-model", progress=False)
    assert model.generate("w5 w6", max_new_tokens=2) == lc.load_model(tiny_model_dir).generate("w5 w6", max_new_tokens=2)


def test_a_path_that_is_there_wins_over_a_name(cache: Path, make_model, tmp_path: Path, monkeypatch) -> None:
    put_into_cache(cache, "someone/model", make_model("cached"))
    make_model("someone/model", hidden_size=64, intermediate_size=48)
    monkeypatch.chdir(tmp_path)
    assert lc.load_model("someone/model", progress=False).config["hidden_size"] == 64


def test_a_revision_chooses_the_commit(cache: Path, make_model) -> None:
    put_into_cache(cache, "someone/m", make_model("old"), "a" * 40, "v1")
    put_into_cache(cache, "someone/m", make_model("new", hidden_size=64), "b" * 40, "main")
    assert lc.load_model("someone/m", revision="v1", progress=False).config["hidden_size"] == 32
    assert lc.load_model("someone/m", revision="a" * 40, progress=False).config["hidden_size"] == 32
    assert lc.load_model("someone/m", progress=False).config["hidden_size"] == 64


def test_an_adapter_in_the_cache_is_loaded_and_names_its_base(cache: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    put_into_cache(cache, "someone/base", tiny_model_dir)
    model = lc.load_model("someone/base", progress=False)
    model.add_adapter(r=2)
    model.save_adapter(tmp_path / "adapter")
    values = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == "someone/base"  # found elsewhere, too, which a path in a cache is not
    put_into_cache(cache, "someone/adapter", tmp_path / "adapter")
    again = lc.load_model("someone/base", progress=False)
    again.load_adapter("someone/adapter")
    assert again.adapter_config is not None and again.adapter_config.r == 2


def test_without_cache_and_network_one_line_says_what_to_run_elsewhere(cache: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        lc.load_model("Qwen/Qwen3-0.6B")
    said = str(caught.value)
    assert said.startswith(
        "Qwen/Qwen3-0.6B: expected the path of a model, or its name on the Hugging Face Hub, got neither a path"
    )
    assert "hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B" in said and "HF_HUB_OFFLINE" in said and "\n" not in said
    with pytest.raises(CheckpointError, match="hf download a/b --revision v2 --local-dir b"):
        lc.load_model("a/b", revision="v2")


def test_an_adapter_without_cache_and_network_is_one_line(cache: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(AdapterError, match="expected the path of an adapter.*hf download a/b --local-dir b"):
        lc.load_model(tiny_model_dir).load_adapter("a/b")


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_a_part_of_a_model_in_the_cache_is_not_taken_for_all_of_it(cache: Path, tiny_model_dir: Path, lost: str) -> None:
    snapshot = put_into_cache(cache, "someone/part", tiny_model_dir)
    (snapshot / lost).unlink()
    with pytest.raises(CheckpointError, match="hf download someone/part"):
        lc.load_model("someone/part")


def test_the_cache_is_not_written_to(cache: Path, tiny_model_dir: Path) -> None:
    put_into_cache(cache, "someone/m", tiny_model_dir)
    before = sorted(cache.rglob("*"))
    lc.load_model("someone/m", progress=False)
    assert sorted(cache.rglob("*")) == before


def test_commands_take_names_and_say_one_line_without(cache: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    put_into_cache(cache, "someone/m", tiny_model_dir)
    done = in_a_shell("generate", "--model", "someone/m", "w5", "--max-new-tokens", "2", cache=cache, HF_HUB_OFFLINE="1")
    assert done.returncode == 0 and done.stderr == ""
    (tmp_path / "d.txt").write_text("w5 w6 w7 w8\n" * 4)
    out = str(tmp_path / "run")
    trained = in_a_shell(
        "train", "--model", "someone/m", "--data", str(tmp_path / "d.txt"), "--output-dir", out, "--max-steps", "1",
        "--method", "lora", cache=cache, HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    exported = in_a_shell("export", out, str(tmp_path / "x.gguf"), "--to", "gguf", cache=cache, HF_HUB_OFFLINE="1")
    assert exported.returncode == 0, exported.stderr
    for command in (["generate", "x"], ["eval", "--data", str(tmp_path / "d.txt")]):
        done = in_a_shell(*command, "--model", "no/where", cache=cache, HF_HUB_OFFLINE="1")
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "hf download no/where" in done.stderr


class Hub:
    """What is asked of a server that has repositories as the Hub serves them."""

    def __init__(self, repos: dict[str, Path]) -> None:
        self.repos, self.asked, self.files = repos, [], []  # type: ignore[var-annotated]
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0].strip("/")
        self.asked.append(path)
        name = next((repo for repo in self.repos if path.removeprefix("api/models/").startswith(repo)), None)
        if name is None:
            return self.send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = sorted(file for file in self.repos[name].rglob("*") if file.is_file())
        names = {str(file.relative_to(self.repos[name])): file for file in files}
        rest = path.removeprefix("api/models/").removeprefix(name).strip("/")
        if rest.startswith("tree/"):
            tree = [{"type": "file", "path": n, "size": f.stat().st_size, "oid": digest(f)} for n, f in names.items()]
            return self.send(request, 200, json.dumps(tree).encode())
        if not rest.startswith("resolve/"):
            siblings = [{"rfilename": n} for n in names]
            return self.send(request, 200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())
        wanted = rest.split("/", 2)[2]
        if wanted not in names:
            return self.send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
        if request.command == "GET":
            self.files.append(wanted)
        self.send(request, 200, names[wanted].read_bytes(), {"ETag": f'"{digest(names[wanted])}"', "X-Repo-Commit": COMMIT})

    def send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        request.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


def digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def hub() -> Iterator[Callable[[dict[str, Path]], Hub]]:
    started: list[Hub] = []

    def start(repos: dict[str, Path]) -> Hub:
        started.append(Hub(repos))
        return started[-1]

    yield start
    for one in started:
        one.server.shutdown()
        one.server.server_close()


def test_only_the_files_that_are_needed_are_brought_and_only_once(hub, tiny_model_dir: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "model.onnx", "model-Q4_K_M.gguf", "consolidated.safetensors", "README.md"):
        (tiny_model_dir / name).write_bytes(b"of no use")
    (tiny_model_dir / "onnx").mkdir()
    (tiny_model_dir / "onnx" / "model.safetensors").write_bytes(b"of no use")
    server, cache = hub({"someone/m": tiny_model_dir}), tmp_path / "hub"
    args = ("generate", "--model", "someone/m", "w5", "--max-new-tokens", "2")
    done = in_a_shell(*args, cache=cache, HF_ENDPOINT=server.address)
    assert done.returncode == 0, done.stderr
    assert sorted(server.files) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    asked = len(server.asked)
    again = in_a_shell(*args, cache=cache, HF_ENDPOINT=server.address)
    assert again.stdout == done.stdout and len(server.asked) == asked  # the cache first
    assert "\r" not in done.stderr  # no bar in a file


def test_what_is_not_on_the_hub_is_said_in_one_line(hub, tiny_model_dir: Path, tmp_path: Path) -> None:
    (tiny_model_dir / "model.safetensors").rename(tiny_model_dir / "pytorch_model.bin")
    server = hub({"someone/pickled": tiny_model_dir})
    expected = {
        "someone/pickled": "expected a model with config.json and safetensors files, got a repository without",
        "someone/none": "expected the path of a model, or its name on the Hugging Face Hub, got neither; check the name",
    }
    for name, line in expected.items():
        done = in_a_shell("generate", "--model", name, "x", cache=tmp_path / "hub", HF_ENDPOINT=server.address)
        assert done.returncode == 1 and f"{name}: {line}" in done.stderr and "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


def test_a_hub_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    done = in_a_shell("generate", "--model", "a/b", "x", cache=tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "the Hub cannot be reached; where there is a network run: hf download a/b --local-dir b" in done.stderr
