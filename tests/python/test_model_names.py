"""What names a model: a path, "demo", a home folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

import lora_c as lc
from lora_c.checkpoints.model_names import BASE_MODEL, expand, find, is_hub_name
from lora_c.cli.commands import cli
from lora_c.errors import CheckpointError, ConfigError


def test_demo_is_the_base_that_ships() -> None:
    model = lc.load_model("demo", progress=False)
    assert model.source == BASE_MODEL and model.num_parameters() > 100_000
    assert model.generate("Tom", max_new_tokens=3)


def test_a_folder_that_is_named_demo_wins(make_model, tmp_path: Path, monkeypatch) -> None:
    make_model("demo")
    monkeypatch.chdir(tmp_path)
    assert lc.load_model("demo", progress=False).config["hidden_size"] == 32


def test_the_home_folder_is_written_as_a_tilde(make_model, tmp_path: Path, monkeypatch) -> None:
    make_model("model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert lc.load_model("~/model", progress=False).config["hidden_size"] == 32
    assert lc.load_model(Path("~/model"), progress=False).config["hidden_size"] == 32


def test_a_path_that_is_there_as_it_stands_is_that_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/nowhere")
    os.mkdir("~")
    assert expand("~") == "~"
    os.rmdir("~")
    assert expand("~") == "/nowhere"


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("Qwen/Qwen3-0.6B", True), ("gpt2", False), ("a/b/c", False), ("./a", False), ("../a", False), ("/a/b", False),
        ("models/x.gguf", False), ("a/..", False), ("", False), ("a/b ", False), ("a/", False), ("~/a", False),
    ],
)  # fmt: skip
def test_names_of_the_hub_have_an_owner_and_a_name(name: str, is_one: bool) -> None:
    assert is_hub_name(name) is is_one


def test_a_revision_is_for_names_on_the_hub(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="revision: expected none with a path, got 'main'"):
        lc.load_model(tiny_model_dir, revision="main")


@pytest.mark.parametrize("wrong", [None, 5, b"model", ["model"]])
def test_what_is_no_path_is_refused_in_one_line(wrong) -> None:
    with pytest.raises(ConfigError, match="model: expected a path"):
        lc.load_model(wrong)


def test_a_name_that_is_nothing_is_answered_by_what_was_expected() -> None:
    assert find("no-such-thing") == "no-such-thing"
    with pytest.raises(CheckpointError, match="no-such-thing: expected a model folder"):
        lc.load_model("no-such-thing")


def test_demo_is_a_model_for_every_command_and_stays_a_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text('{"text": "a ball is red"}\n')
    train = ["train", "--model", "demo", "--data", "d.jsonl", "--max-steps", "1", "--output-dir", "run"]
    for args in (
        train,
        ["generate", "--model", "demo", "--adapter", "run", "--max-new-tokens", "2", "a"],
        ["eval", "--model", "demo", "--data", "d.jsonl"],
        ["inspect", "demo"],
        ["merge", "--model", "demo", "--adapter", "run", "--output-dir", "merged", "--no-report"],
        ["export", "demo", "demo.gguf", "--to", "gguf"],
        ["export", "run", "run.gguf", "--to", "gguf"],
        ["quantize", "--model", "demo", "--output-dir", "nf4"],
    ):
        done = CliRunner().invoke(cli, args)
        assert done.exit_code == 0, (args, done.output, done.exception)
    assert "model: demo\n" in (tmp_path / "run" / "config.yaml").read_text()


def test_the_base_that_ships_is_not_written_over(tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in BASE_MODEL.iterdir()}
    done = CliRunner().invoke(cli, ["quantize", "--model", "demo", "--output-dir", str(BASE_MODEL)])
    assert isinstance(done.exception, ConfigError) and "expected another place than model" in str(done.exception)
    assert {file.name: file.read_bytes() for file in BASE_MODEL.iterdir()} == before
