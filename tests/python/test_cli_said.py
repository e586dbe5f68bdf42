"""What a command decides between two readings is said, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import lora_c as lc
from lora_c.cli.commands import cli
from lora_c.cli.notices import plain_notices


def run(*args: object) -> Result:
    with plain_notices():
        return CliRunner().invoke(cli, [str(arg) for arg in args])


@pytest.fixture
def own_base(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """An adapter that brings the base it was made for."""
    model = lc.load_model(tiny_model_dir, quantize="nf4", progress=False)
    model.add_adapter(r=2, target_modules=["q_proj"], init_lora_weights="loftq")
    model.save_adapter(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "base_model").is_dir()
    return tmp_path / "adapter"


@pytest.mark.parametrize("command", ["generate", "eval", "chat"])
def test_a_flag_for_one_path_is_refused_when_it_is_given_twice(tiny_model_dir: Path, tmp_path: Path, command: str) -> None:
    data = ("--data", tiny_model_dir / "config.json") if command == "eval" else ()
    done = run(command, "--model", tiny_model_dir, *data, "--adapter", tmp_path / "a", "--adapter", tmp_path / "b")
    assert done.exit_code == 2
    assert "adapter: expected it once, got it 2 times; leave one of them out" in done.stderr


def test_an_output_given_twice_is_refused_and_a_number_given_twice_is_changed(tiny_model_dir: Path, tmp_path: Path) -> None:
    done = run("quantize", tiny_model_dir, tmp_path / "a", tmp_path / "b")
    assert done.exit_code == 2
    done = run("train", "--model", tiny_model_dir, "--output-dir", tmp_path / "a", "--output-dir", tmp_path / "b")
    assert done.exit_code == 2 and "output-dir: expected it once" in done.stderr
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "w3 w4 w5"}) + "\n", encoding="utf-8")
    limits = ("--max-seq-length", 3, "--max-seq-length", 9)
    assert run("eval", "--model", tiny_model_dir, "--data", tmp_path / "d.jsonl", *limits).exit_code == 0


def test_eval_says_that_a_folder_has_only_training_data(tiny_model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text(json.dumps({"text": "w3 w4 w5"}) + "\n", encoding="utf-8")
    said = "no test or validation split there: the training split is evaluated"
    assert said in run("eval", "--model", tiny_model_dir, "--data", data).stderr
    assert said not in run("eval", "--model", tiny_model_dir, "--data", data, "--split", "train").stderr
    assert said not in run("eval", "--model", tiny_model_dir, "--data", data / "train.jsonl").stderr
    (data / "test.jsonl").write_text(json.dumps({"text": "w3 w4 w5"}) + "\n", encoding="utf-8")
    assert said not in run("eval", "--model", tiny_model_dir, "--data", data).stderr


def test_an_adapter_with_a_base_of_its_own_is_said(tiny_model_dir: Path, own_base: Path) -> None:
    done = run("generate", "--model", tiny_model_dir, "--adapter", own_base, "--raw", "--max-new-tokens", 1, "w3")
    assert "the adapter brings a base of its own (base_model/), which takes the place of" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "flag", ["--resume", "--model", "--adapter", "--data", "--eval-data", "--prompts", "--split", "--output-dir"]
)
def test_an_empty_value_is_refused(tiny_model_dir: Path, tmp_path: Path, flag: str) -> None:
    """A shell variable that was never set must not turn a flag off."""
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "w3 w4 w5"}) + "\n", encoding="utf-8")
    command = {"--prompts": "generate", "--split": "eval", "--adapter": "eval"}.get(flag, "train")
    given = {"--model": tiny_model_dir} | ({} if command == "generate" else {"--data": tmp_path / "d.jsonl"}) | {flag: ""}
    if command == "train":
        given = {"--output-dir": tmp_path / "out"} | given
    done = run(command, *(part for pair in given.items() for part in pair))
    assert done.exit_code != 0 and not (tmp_path / "out").exists()
    assert "expected" in str(done.exception) + done.stderr and "got ''" in str(done.exception) + done.stderr
