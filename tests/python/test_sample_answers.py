"""Held-out prompts with the answers before and after training: shown, and without effect on the training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import lora_c as lc
from lora_c.cli import cli
from lora_c.data import Dataset, Sample
from lora_c.training.sample_answers import answer_of, choose_prompts, in_one_line


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, args)), prog_name="lora-c")


@pytest.fixture
def model(make_model: Callable[..., Path]) -> lc.Model:
    return lc.load_model(make_model(), progress=False)


def sample(ids: list[int], mask: list[int]) -> Sample:
    return Sample(np.array(ids, np.int32), np.array(mask, np.float32))


def test_prompts_are_those_of_samples_that_have_one(model: lc.Model) -> None:
    data = Dataset([
        sample([1, 3, 4, 5], [0, 1, 1, 1]),  # a text behind its begin
        sample([3, 4, 5], [1, 1, 1]),
        sample([1, 3, 4, 5, 6, 2], [0, 0, 0, 1, 1, 1]),
        sample([1, 3, 4, 7], [0, 0, 0, 1]),  # the same prompt again
        sample([8, 9, 10, 2, 11, 12], [0, 0, 1, 1, 0, 1]),  # two turns
        sample([13, 14, 15], [0, 0, 1]),
        sample([5] * 60 + [6], [0] * 60 + [1]),  # no room for an answer
    ])  # fmt: skip
    found = choose_prompts(model, data, 2)
    assert [(one.ids, one.prompt, one.expected) for one in found] == [([1, 3, 4], "w3 w4", "w5 w6"), ([8, 9], "w8 w9", "w10")]
    assert [one.ids for one in choose_prompts(model, data, 9)][2:] == [[13, 14]]
    assert choose_prompts(model, data, 0) == [] == choose_prompts(model, None, 2)


def test_answers_are_greedy_and_short(model: lc.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = choose_prompts(model, Dataset([sample([3, 4, 5], [0, 0, 1])]), 1)
    assert answer_of(model, one) == model.generate([3, 4], max_new_tokens=32)
    assert answer_of(model, one, stopped=lambda: True).endswith("…")
    monkeypatch.setattr("lora_c.training.sample_answers._MOST_SECONDS", 0.0)
    assert answer_of(model, one).endswith("…") and len(answer_of(model, one)) < 8


def test_a_text_becomes_one_line() -> None:
    assert in_one_line(" a\n b ", 9) == "a b"
    assert (in_one_line("0123456789", 5), in_one_line("0123456789", 5, end=True)) == ("0123…", "…6789")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    records = [{"prompt": f"w{3 + i} w{4 + i} ", "completion": f"w{5 + i}"} for i in range(30)]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_they_are_shown_and_change_no_bit(model: lc.Model, data: Path, tmp_path: Path) -> None:
    flags = ["train", "--model", model.source, "--data", data, "--max-steps", 4, "--learning-rate", "3e-2",
             "--lora-dropout", 0.1, "--save-steps", 2]  # fmt: skip
    shown = {}
    for samples in (0, 1, 2):
        out = tmp_path / f"out{samples}"
        result = run(*flags, "--val-fraction", 0.2, "--output-dir", out, *([] if samples == 2 else ["--samples", samples]))
        assert result.exit_code == 0, result.exception
        shown[samples] = result.output
        assert result.output.count("\nsample    ") == result.output.count(" expected ") == samples
    adapters = {(tmp_path / f"out{n}/adapter_model.safetensors").read_bytes() for n in (0, 1, 2)}
    assert len(adapters) == 1
    assert "before" in shown[2] and "after" in shown[2]
    assert "sample    " not in run(*flags, "--output-dir", tmp_path / "none").output  # nothing is held out

    before = [one["before"] for one in json.loads((tmp_path / "out2/run.json").read_text())["samples"]]
    resumed = run("train", "--config", tmp_path / "out2/config.yaml", "--resume", tmp_path / "out2/checkpoint-2")
    assert resumed.exit_code == 0 and resumed.output.count("\nsample    ") == 2
    assert [one["before"] for one in json.loads((tmp_path / "out2/run.json").read_text())["samples"]] == before


def test_a_sample_that_fails_ends_no_run(model: lc.Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("of a library")

    monkeypatch.setattr("lora_c.training.sample_answers.generate_text", fail)
    with pytest.warns(lc.notices.LoraCWarning, match=r"samples: not written \(of a library\)"):
        result = run("train", "--model", model.source, "--data", data, "--max-steps", 1, "--val-fraction", 0.2,
                     "--output-dir", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 0 and (tmp_path / "out/adapter_model.safetensors").exists()
