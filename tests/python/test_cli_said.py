"""What a command decides between two readings is said, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--density", 0.5), "density: expected a combination that heeds it, got one adapter"),
        (("--seed", 3), "seed: expected a combination that heeds it"),
        (("--weights", "0.5", "--svd-rank", 3), "svd-rank: expected a combination that heeds it, got --combination cat"),
        (("--no-report", "--data", "DATA"), "data: expected the report beside it"),
        (("--adapter", "ADAPTER"), "adapter: expected each one once"),
        (("--weights", "0.5", "--combination", "svd", "--svd-rank", 2), None),
        (("--weights", "0.5", "--combination", "dare", "--density", 0.9, "--seed", 3, "--no-report"), None),
    ],
)
def test_what_a_merge_would_ignore_is_refused(tiny_model_dir: Path, tmp_path: Path, flags: Any, said: str | None) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2, target_modules=["q_proj"])
    model.save_adapter(tmp_path / "adapter")
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"text": "w3 w4 w5"}) + "\n", encoding="utf-8")
    flags = [{"DATA": data, "ADAPTER": f"{tmp_path}/./adapter"}.get(flag, flag) for flag in flags]
    done = run("merge", "--model", tiny_model_dir, "--adapter", tmp_path / "adapter", "--output", tmp_path / "m", *flags)
    assert (said is None) == (done.exit_code == 0), done.exception
    assert said is None or (said in str(done.exception) and not (tmp_path / "m").exists())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--temperature", 0, "--top-p", 0.9), "--top-p: no effect, the answer is greedy (--temperature 0)"),
        (("--no-do-sample", "--temperature", 0.7), "--temperature: no effect, the answer is greedy (--no-do-sample)"),
        (("--seed", 3), "--seed: no effect, the answer is greedy (nothing asks for draws)"),
        (("--temperature", 0.7, "--seed", 3), None),
        (("--temperature", 0), None),
    ],
)
def test_flags_for_draws_are_said_where_there_are_none(tiny_model_dir: Path, flags: Any, said: str | None) -> None:
    done = run("generate", "--model", tiny_model_dir, "--max-new-tokens", 1, *flags, "w3")
    assert done.exit_code == 0
    assert said in done.stderr if said else "no effect" not in done.stderr


def test_flags_that_need_another_are_refused_without_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"text": "w3 w4 w5"}) + "\n", encoding="utf-8")
    both = ("--model", tiny_model_dir, "--data", data)
    done = run("train", *both, "--output-dir", tmp_path / "out", "--allow-changes")
    assert "--allow-changes: expected --resume beside it" in str(done.exception)
    assert "split: expected a folder" in str(run("eval", *both, "--split", "train").exception)
    done = run("generate", "--model", tiny_model_dir, "--min-new-tokens", 9, "--max-new-tokens", 3, "w3")
    assert "min-new-tokens: expected at most max_new_tokens (3), got 9" in str(done.exception)


def test_an_adapter_beside_the_weights_of_a_model_is_said(tiny_model_dir: Path) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2, target_modules=["q_proj"])
    model.save_adapter(tiny_model_dir.parent / "a")
    for file in (tiny_model_dir.parent / "a").iterdir():
        file.rename(tiny_model_dir / file.name)
    with pytest.warns(lc.notices.LoraCWarning, match="an adapter lies beside the model's weights, and counts where"):
        lc.load_model(tiny_model_dir, progress=False)


def test_prompts_that_are_trained_without_the_chat_template_are_said(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"prompt": "a b", "completion": " c"}) + "\n", encoding="utf-8")
    said = "1 of 1 prompts are trained as they stand, without the model's chat template"
    assert said in run("data", "--model", "demo", "--data", data).stderr
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    data.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    assert said not in run("data", "--model", "demo", "--data", data).stderr


def test_a_prompt_of_nothing_is_refused_and_a_dash_is_standard_input(tiny_model_dir: Path) -> None:
    flags = ["generate", "--model", str(tiny_model_dir), "--max-new-tokens", "3", "--ignore-eos"]
    assert "prompt: expected a text, got an empty one" in str(CliRunner().invoke(cli, [*flags, ""]).exception)
    assert "on standard input, got nothing" in str(CliRunner().invoke(cli, flags, input="").exception)
    piped = CliRunner().invoke(cli, [*flags, "-"], input="w3 w4\n")
    assert piped.exit_code == 0 and piped.stdout == CliRunner().invoke(cli, [*flags, "w3 w4"]).stdout


def test_data_that_is_not_there_is_said_first_with_the_nearest_name(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}", encoding="utf-8")
    said = str(run("eval", "--model", tiny_model_dir, "--data", tmp_path / "mime.jsonl").exception)
    assert said.startswith(f"data: expected a file or folder, got '{tmp_path}/mime.jsonl', which does not exist, did you mean")
    assert said.endswith("'mine.jsonl'?")
