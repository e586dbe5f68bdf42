"""Draws: anew each time unless a seed is given, the seed is told, and several answers to a prompt."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import lora_c as lc
from lora_c.cli.commands import cli
from lora_c.errors import ConfigError

DRAWN = {"max_new_tokens": 12, "temperature": 2.0, "ignore_eos": True}


@pytest.fixture
def model(tiny_model_dir: Path) -> lc.Model:
    return lc.load_model(tiny_model_dir, progress=False)


def test_each_call_draws_anew_and_its_seed_gives_the_same_again(model: lc.Model) -> None:
    answers, seeds = [], []
    for _ in range(4):
        answers.append(model.generate("w3 w4", **DRAWN))
        seeds.append(model.last_seed)
    assert len(set(answers)) > 1 and len(set(seeds)) == 4
    for answer, seed in zip(answers, seeds, strict=True):
        assert model.generate("w3 w4", **DRAWN, seed=seed) == answer and model.last_seed == seed
    assert "".join(model.stream("w3 w4", **DRAWN, seed=seeds[0])) == answers[0]
    streamed = "".join(model.stream("w3 w4", **DRAWN))
    assert streamed == model.generate("w3 w4", **DRAWN, seed=model.last_seed)


def test_a_configuration_is_not_given_the_seed_that_was_drawn(model: lc.Model) -> None:
    config = lc.GenerationConfig(**DRAWN)
    assert config.seed is None
    model.generate("w3", config)
    assert config.seed is None


def test_the_greedy_answer_has_no_seed(model: lc.Model) -> None:
    model.generate("w3", **DRAWN)
    assert model.generate("w3", max_new_tokens=5) == model.generate("w3", max_new_tokens=5)
    assert model.last_seed is None


def test_several_answers_to_a_prompt_differ_and_the_first_is_that_alone(model: lc.Model) -> None:
    answers = model.generate("w3 w4", **DRAWN, seed=5, num_return_sequences=3)
    assert len(answers) == 3 and len(set(answers)) == 3
    assert answers[0] == model.generate("w3 w4", **DRAWN, seed=5)
    assert answers == model.generate("w3 w4", **DRAWN, seed=5, num_return_sequences=3)


def test_several_answers_to_several_prompts_follow_each_other(model: lc.Model) -> None:
    answers = model.generate(["w3 w4", "w5"], **DRAWN, seed=5, num_return_sequences=2)
    assert answers[:2] == model.generate("w3 w4", **DRAWN, seed=5, num_return_sequences=2)
    assert answers[2:] == model.generate("w5", **DRAWN, seed=5, num_return_sequences=2)


def test_prompts_of_a_batch_are_answered_as_alone_with_its_seed(model: lc.Model) -> None:
    answers = model.generate(["w3 w4", "w5"], **DRAWN)
    assert answers == [model.generate(prompt, **DRAWN, seed=model.last_seed) for prompt in ("w3 w4", "w5")]


@pytest.mark.parametrize("greedy", [{}, {"temperature": 0.0}, {"do_sample": False}])
def test_several_greedy_answers_are_refused(model: lc.Model, greedy: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="num_return_sequences: expected 1 for the greedy answer"):
        model.generate("w3", num_return_sequences=2, **greedy)


def test_several_answers_are_not_streamed(model: lc.Model) -> None:
    with pytest.raises(
        ConfigError, match="num_return_sequences: expected 1 for an answer that is streamed, got 2; call generate"
    ):
        model.stream("w3", **DRAWN, num_return_sequences=2)


def test_the_command_line_tells_the_seed_that_it_drew(tiny_model_dir: Path) -> None:
    args = [
        "generate",
        "--model",
        str(tiny_model_dir),
        "w3 w4",
        "--temperature",
        "2",
        "--ignore-eos",
        "--max-new-tokens",
        "12",
    ]
    drawn = CliRunner().invoke(cli, args)
    seed = re.fullmatch(r"seed      (\d+)\n", drawn.stderr)
    assert drawn.exit_code == 0 and seed is not None
    again = CliRunner().invoke(cli, [*args, "--seed", seed[1]])
    assert again.stdout == drawn.stdout and again.stderr == ""
    assert CliRunner().invoke(cli, args[:4]).stderr == ""  # greedy


def test_the_command_line_writes_several_answers_as_lines(tiny_model_dir: Path) -> None:
    args = ["generate", "--model", str(tiny_model_dir), "--temperature", "2", "--num-return-sequences", "3", "--seed", "1"]
    done = CliRunner().invoke(cli, [*args, "--max-new-tokens", "9", "--ignore-eos"], input="w3 w4\n")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["prompt"] for line in lines] == ["w3 w4"] * 3 and len({line["answer"] for line in lines}) == 3
