"""Flags under the names that people know from elsewhere, and refusals by the name that was typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from lora_c.cli import cli
from lora_c.cli.commands import COMMANDS
from lora_c.cli.options import Command, config_options
from lora_c.configs import GenerationConfig, LoraConfig, TrainConfig
from lora_c.configs.other_names import SECOND_NAMES, SYNONYMS, meant
from lora_c.errors import ConfigError


def invoke(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


@click.command("probe", cls=Command)
@click.option("--model", type=str)
@click.option("--use-generation-config", is_flag=True)
@click.argument("prompt", nargs=-1)
@config_options(TrainConfig, "Training")
@config_options(LoraConfig, "Adapter", skip=("seed",))
def probe(**own: Any) -> dict[str, Any]:
    return {name: value for name, value in own.items() if value is not None}


def probed(*args: object) -> dict[str, Any]:
    result = probe.main([str(arg) for arg in args], standalone_mode=False)
    assert isinstance(result, dict)
    return result


NUMBERS = [
    (option, name, 3.0 if option in ("learning_rate", "num_train_epochs", "lora_alpha", "lora_dropout") else 3)
    for option, names in SECOND_NAMES.items()
    for name in names
    if option in TrainConfig.model_fields or option in LoraConfig.model_fields
]


@pytest.mark.parametrize(("option", "name", "value"), NUMBERS)
def test_a_second_name_is_the_same_flag_and_the_same_key(tmp_path: Path, option: str, name: str, value: Any) -> None:
    value = str(value) if option == "output_dir" else value
    assert probed("--" + name.replace("_", "-"), value)[option] == value
    assert probed(f"--{name}={value}")[option] == value
    (tmp_path / "c.yaml").write_text(f"{name}: {value}\n")
    assert probed("--config", tmp_path / "c.yaml")[option] == value
    help_text = CliRunner().invoke(probe, ["--help"], terminal_width=200).output
    assert f", --{name.replace('_', '-')}" in help_text


def test_underscores_in_flags_are_dashes_and_the_model_has_a_short_name() -> None:
    assert probed("--learning_rate", "1e-3", "--use_generation_config", "-m", "here") == {
        "prompt": (), "learning_rate": 1e-3, "use_generation_config": True, "model": "here",
    }  # fmt: skip
    assert probed("--output_dir=a_b", "--no_use_dora") == {
        "prompt": (), "output_dir": "a_b", "use_dora": False, "use_generation_config": False,
    }  # fmt: skip
    assert probed("--", "--learning_rate")["prompt"] == ("--learning_rate",)


def test_two_names_of_one_flag_are_refused_and_the_same_name_twice_is_not(tmp_path: Path) -> None:
    for first, second in (("--lr", "--learning-rate"), ("--rank", "--lora-r"), ("--learning_rate", "--lr")):
        with pytest.raises(click.UsageError, match="expected each flag once, got --.* which is another name of it"):
            probed(first, 1, second, 1)
    assert probed("--lr", 1, "--lr", 2)["learning_rate"] == 2.0
    assert probed("--output", "--lr", "--learning-rate", 1)["output_dir"] == "--lr"  # the value of a flag is no flag
    (tmp_path / "c.yaml").write_text("lr: 1e-3\nr: 4\nlearning_rate: 2e-3\n")
    with pytest.raises(ConfigError, match="3: learning_rate: expected each key once, got lr in line 1 too"):
        probed("--config", tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("lr: 1e-3\n")
    assert probed("--config", tmp_path / "c.yaml", "--learning-rate", 5)["learning_rate"] == 5.0


@pytest.mark.parametrize("name", ["generate", "chat"])
def test_generation_has_the_second_names_of_generation(name: str) -> None:
    text = CliRunner().invoke(cli, [name, "--help"], terminal_width=200).output
    for option in ("max_new_tokens", "temperature", "stop_strings", "repetition_penalty"):
        assert "".join(f", --{other.replace('_', '-')}" for other in SECOND_NAMES[option]) in text


def test_python_has_one_name_each() -> None:
    for option, name, value in NUMBERS:
        config = TrainConfig if option in TrainConfig.model_fields else LoraConfig
        with pytest.raises(ConfigError, match=f"{config.__name__}: {name}: unknown option, did you mean '{option}'"):
            config(**{name: value})


@pytest.mark.parametrize(("command", "name", "here"), [
    ("train", "--gradient-checkpointing", "--recompute"), ("train", "--warmup", "--warmup-ratio"),
    ("train", "--load_in_4bit", "--method"), ("train", "--model_name_or_path", "--model"), ("train", "--iters", "--max-steps"),
    ("train", "--val-set-size", "--val-fraction"), ("train", "--lora_target_modules", "--target-modules"),
    ("train", "--random-state", "--seed"), ("train", "--cutoff_len", "--max-seq-length"), ("train", "--lora-rank", "--r"),
    ("train", "--resume_from_checkpoint", "--resume"), ("train", "--dataset", "--data"), ("train", "--modle", "--model"),
    ("generate", "--n-predict", "--max-new-tokens"), ("generate", "--max-length", "--max-new-tokens"),
    ("generate", "--adapter-path", "--adapter"), ("generate", "--load-in-4bit", "--quantize"),
    ("chat", "--system-prompt", "--system"), ("eval", "--dataset", "--data"), ("eval", "--bs", "--batch-tokens"),
    ("merge", "--lora", "--adapter"), ("merge", "--out", "--output-dir"), ("quantize", "--out", "--output-dir"),
    ("bench", "--lora-rank", "--rank"),
    ("eval", "--batch-size", "--batch-tokens"), ("export", "--format", "--to"), ("demo", "--save-dir", "--out"),
])  # fmt: skip
def test_a_wrong_name_is_answered_by_its_meaning(command: str, name: str, here: str) -> None:
    done = invoke(command, name, "x")
    assert done.exit_code == 2 and f"Did you mean '{here}'?" in done.output


def test_a_flag_for_what_is_given_without_one_says_so() -> None:
    assert "[PROMPT]... is given without one" in invoke("generate", "--prompt", "x").output
    assert "did you mean" not in invoke("train", "--zzz").output.lower()


def test_every_synonym_leads_to_an_option_of_some_command() -> None:
    context = click.Context(cli)
    commands = [cli.get_command(context, name) for name in COMMANDS]
    known = {param.name for command in commands if command for param in command.params}
    known |= {name.lstrip("-").replace("-", "_") for c in commands if c for param in c.params for name in param.opts}
    lost = {name: options for name, options in SYNONYMS.items() if not known & set(options)}
    assert not lost
    assert not [name for name in SYNONYMS if name in known and meant(name, known - {name}) == name]


@pytest.mark.parametrize(("args", "said"), [
    (("--learning-rate", "-1"), "--learning-rate: expected greater than 0, got -1.0"),
    (("--lr", "-1"), "--learning-rate: expected greater than 0, got -1.0"),
    (("--rank", "0"), "--r: expected greater than 0, got 0"),
    (("--rank-pattern", "q_proj=0"), "--rank-pattern: q_proj: expected greater than 0, got 0"),
    (("--max-steps", "0"), "--max-steps: expected a positive number, or -1 for num_train_epochs, got 0"),
    (("--layers-pattern", "h"), "--layers-pattern: expected layers_to_transform beside it, got none"),
    (("--warmup-ratio", "2", "--seed", "-1"),
     "--warmup-ratio: expected less than or equal to 1, got 2.0; --seed: expected greater than or equal to 0, got -1"),
    ((), "--model: expected a path, got nothing"),
])  # fmt: skip
def test_a_refused_flag_is_named_as_a_flag(args: tuple[str, ...], said: str) -> None:
    error = invoke("train", *args).exception
    assert isinstance(error, ConfigError) and str(error).startswith(said) and "Config:" not in str(error)


@pytest.mark.parametrize(("line", "said"), [
    ("learning_rate: -1", "learning_rate: expected greater than 0, got -1.0"),
    ("lr: -1", "lr: expected greater than 0, got -1.0"),
    ("rank_pattern: {q_proj: 0}", "rank_pattern: q_proj: expected greater than 0, got 0"),
    ("max-steps: 0", "max_steps: expected a positive number"),
])  # fmt: skip
def test_a_refused_key_is_named_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"# first\n{line}\n")
    error = invoke("train", "--config", path).exception
    assert isinstance(error, ConfigError) and str(error).startswith(f"{path}:2: {said}") and "Config:" not in str(error)


def test_other_commands_name_their_flags_too(tiny_model_dir: Path) -> None:
    assert str(invoke("bench", "--model", tiny_model_dir, "--length", 999).exception).startswith("--length: expected 2 to 64")
    assert str(invoke("generate", "x", "--temperature", -1).exception).startswith("--temperature: expected greater than")
    assert str(invoke("chat", "--top-p", 2).exception).startswith("--top-p: expected less than")


def test_python_keeps_the_name_of_the_class() -> None:
    with pytest.raises(ConfigError, match="^TrainConfig: learning_rate: expected greater than 0") as error:
        TrainConfig(learning_rate=-1)
    assert error.value.problems == (("learning_rate", "expected greater than 0, got -1"),)
    with pytest.raises(ConfigError, match="^GenerationConfig: forced_bos_token_id: expected a token that may be written"):
        GenerationConfig(forced_bos_token_id=3, suppress_tokens=[3])
