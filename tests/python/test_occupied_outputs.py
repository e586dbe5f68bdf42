"""What somebody made is not replaced unless it is asked for."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import lora_c as lc
from lora_c.cli import cli
from lora_c.cli.occupied import held_by_a_demo, next_free


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, args)), prog_name="lora-c")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def inputs(tiny_model_dir: Path, tmp_path: Path) -> Path:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2, target_modules="all-linear")
    model.save_adapter(tmp_path / "adapter")
    (tmp_path / "d.txt").write_text("w3 w4 w5 w6 w7 w8 " * 20)
    return tmp_path


def commands(inputs: Path, output: str) -> dict[str, list[object]]:
    model, adapter, out = inputs / "model", inputs / "adapter", inputs / output
    train = ["train", "--model", model, "--data", inputs / "d.txt", "--max-steps", 1, "--method", "lora"]
    return {
        "train": [*train, "--output-dir", out],
        "merge": ["merge", "--model", model, "--adapter", adapter, "--output-dir", out, "--no-report"],
        "export": ["export", adapter, out, "--to", "mlx", "--model", model],
        "quantize": ["quantize", "--model", model, "--output-dir", out],
    }


@pytest.mark.parametrize("command", ["train", "merge", "export", "quantize"])
@pytest.mark.parametrize("held", ["an adapter", "an adapter of mlx", "a model", "a run"])
def test_a_folder_that_holds_something_is_refused_with_a_free_name(inputs: Path, command: str, held: str) -> None:
    out = inputs / "out"
    model = lc.load_model(inputs / "model", progress=False)
    if held == "a model":
        model.save(out)
    elif held == "a run":
        (out / "checkpoint-7").mkdir(parents=True)
        (out / "checkpoint-7/trainer_state.json").write_text("{}")
    else:
        model.load_adapter(inputs / "adapter")
        model.save_adapter(out, format="mlx" if "mlx" in held else "peft")
    (inputs / "out-2").mkdir()
    before = contents(out)
    result = run(*commands(inputs, "out")[command])
    said = str(result.exception)
    assert result.exit_code == 1 and f"which holds {held.partition(' of')[0]} (" in said and f"{out}-3" in said, said
    assert ("--resume" in said) is (command == "train" and held == "a run") and "--overwrite" in said
    assert contents(out) == before


@pytest.mark.parametrize("command", ["train", "merge", "export", "quantize"])
def test_it_is_replaced_when_that_is_asked_for_and_notes_are_no_reason(inputs: Path, command: str) -> None:
    (inputs / "out").mkdir()
    (inputs / "out/notes.txt").write_text("mine")
    call = commands(inputs, "out")[command]
    assert run(*call).exit_code == 0
    assert run(*call).exit_code == 1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        again = run(*call, "--overwrite")
    assert again.exit_code == 0, again.exception
    assert any("checkpoint-1 of the run before stays there" in str(line.message) for line in told) is (command == "train")
    assert (inputs / "out/notes.txt").read_text() == "mine"


def test_a_file_is_not_replaced(inputs: Path) -> None:
    (inputs / "x.gguf").write_text("mine")
    call = ["merge", "--model", inputs / "model", "--adapter", inputs / "adapter", "--output", inputs / "x.gguf"]
    refused = run(*call)
    assert "which holds a file; give --output-dir" in str(refused.exception) and "x-2.gguf" in str(refused.exception)
    refused = run("export", inputs / "adapter", inputs / "x.gguf", "--to", "gguf", "--model", inputs / "model")
    assert f"give OUTPUT {inputs}/x-2.gguf" in str(refused.exception)
    assert (inputs / "x.gguf").read_text() == "mine"


def test_the_second_default_run_is_offered_the_next_name(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inputs)
    call = [word for word in commands(inputs, "out")["train"] if word not in ("--output-dir", inputs / "out")]
    assert run(*call).exit_code == 0
    refused = run(*call)
    assert "'lora-c-output', which holds a run (checkpoint-1); give --output-dir lora-c-output-2, --resume" in str(
        refused.exception
    )
    assert run(*call, "--resume", "auto").exit_code == 0
    (inputs / "elsewhere/checkpoint-1").mkdir(parents=True)
    other = run(*call, "--resume", inputs / "elsewhere/checkpoint-1")
    assert "which holds a run" in str(other.exception)  # not the one that is resumed


def test_a_run_that_was_refused_at_its_start_may_be_started_again(inputs: Path) -> None:
    (inputs / "out").mkdir()
    (inputs / "out/metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    assert run(*commands(inputs, "out")["train"]).exit_code == 0


def test_a_demonstration_takes_the_place_of_the_one_before_and_of_nothing_else(inputs: Path) -> None:
    assert held_by_a_demo(inputs / "adapter") == "an adapter (adapter_config.json)"
    assert str(run("demo", "--out", inputs / "adapter").exception).startswith("--out: expected a place that is free")
    (inputs / "adapter/demo.json").write_text("{}")
    assert held_by_a_demo(inputs / "adapter") is None


@pytest.mark.parametrize(("name", "free"), [("out", "out-2"), ("out/", "out-2"), ("m.gguf", "m-2.gguf"), ("v1.5", "v1.5-2")])
def test_free_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, free: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert next_free(name) == free
