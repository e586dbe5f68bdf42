"""docs/SERVE.md: its blocks run, and it names every address, flag, field and count."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from serving import Server, metrics_of, serving, write_adapter  # noqa: E402

from lora_c.configs.serving import ServeConfig  # noqa: E402
from lora_c.serve import app, schema  # noqa: E402

PAGE = (Path(__file__).parents[2] / "docs" / "SERVE.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for seed, name in enumerate(("poems", "tales")):
        write_adapter(folder / "adapters" / name, seed)
    return folder


@pytest.fixture(scope="module")
def server(workplace: Path) -> Iterator[Server]:
    words = blocks("sh")[0].split()
    assert words[:4] == ["lora-c", "serve", "--model", "demo"] and words[4:] == ["--adapters", "adapters"]
    with serving("--adapters", workplace / "adapters") as started:
        yield started


def test_the_python_blocks_run(server: Server, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(blocks("python"))
    assert ADDRESS in code
    exec(compile(code.replace(ADDRESS, server.url), "SERVE.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "['base_model', 'poems', 'tales']"
    width, likeness = said[-1].split()
    assert int(width) == 128 and 0.1 < float(likeness) < 1.0


def test_the_commands_run(server: Server, workplace: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    before = server.said("poems")
    (asking, renaming, loading) = blocks("sh")[1:]
    tales = workplace / "adapters" / "tales"
    renaming = renaming.replace("cp -r adapters/poems", "cp -r adapters/tales")  # so that it is seen to be another one
    for block in (asking, renaming, loading):
        done = subprocess.run(
            ["sh", "-euc", block.replace(ADDRESS, server.url)], cwd=workplace, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 and "error" not in done.stdout, done.stdout + done.stderr
        assert '"choices"' in done.stdout or block != asking
    assert server.said("poems") == server.said("tales") != before and tales.is_dir()


def test_what_is_printed_at_the_begin(workplace: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "lora_c", *blocks("sh")[0].split()[1:], "--port", "0"], cwd=workplace, text=True,
        stdout=subprocess.PIPE, env=os.environ | {"LORA_C_API_KEY": ""},
    )  # fmt: skip
    assert program.stdout is not None
    printed = [next(program.stdout) for _ in range(3)]
    program.terminate()
    assert program.wait(30) == 0
    program.stdout.close()
    assert f"```\n{re.sub(r':[0-9]+', ':8000', ''.join(printed))}```\n" in PAGE


def test_every_address_flag_field_and_count_is_named(server: Server) -> None:
    named = set(re.findall(r"`([^`\n]+)`", PAGE))
    words = {word for code in named for word in code.split()} | {word for block in blocks("sh") for word in block.split()}
    assert {f"POST {path}" for path in app._POST} <= named
    assert {f"GET {path.replace(':path', '')}" for path in app._GET} | {"GET /"} <= named
    flags = {f"--{name.replace('_', '-')}" for name in ServeConfig.model_fields}
    assert flags <= words, flags - words
    fields = {*schema.ChatBody.model_fields, *schema.CompletionBody.model_fields}
    assert fields <= named, fields - named
    counts = {re.sub(r"(_bucket|_sum|_count)?(\{.*)?$", "", name) for name in metrics_of(server)}
    counts = {name for name in counts if not name.endswith("_created")}
    assert counts <= named, counts - named
    assert {word for word in named if word.startswith("lora_c_")} <= counts


def test_limits_have_the_defaults_of_the_page() -> None:
    rows = re.findall(r"^\| `--([\w-]+)` \| ([\d,]+)", PAGE, re.M)
    found = {name.replace("-", "_"): float(value.replace(",", "")) for name, value in rows}
    assert found.keys() > {"max_queue", "drain_timeout", "adapter_memory"}
    assert found == {name: ServeConfig.model_fields[name].default for name in found}
