"""The help of every command: two examples that work, the main flags first, readable in narrow terminals."""

from __future__ import annotations

import shlex

import click
import pytest
from click.testing import CliRunner

from lora_c.cli import cli
from lora_c.cli.command_help import EXAMPLES, MAIN_FLAGS
from lora_c.cli.commands import COMMANDS


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def help_of(name: str, columns: int = 80) -> str:
    done = CliRunner().invoke(cli, [name, "--help"], terminal_width=columns, prog_name="lora-c")
    assert done.exit_code == 0, done.exception
    return done.output


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_two_examples(name: str) -> None:
    text = help_of(name, 60)
    first, second = EXAMPLES[name]
    usage, _, rest = text.partition("\n\n")
    assert usage.startswith(f"Usage: lora-c {name}")
    shown = "\n".join(f"  {line}" for example in (first, second) for line in example.split("\n"))
    assert rest.startswith(shown + "\n\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_are_calls_of_the_command(name: str) -> None:
    for example in EXAMPLES[name]:
        words = shlex.split(example.replace("\\\n", " "), comments=False)
        assert words[:2] == ["lora-c", name]
        words = words[2:]
        for redirection in (">", ">>"):
            words = words[: words.index(redirection)] if redirection in words else words
        if "--config" in words:
            words = words[: words.index("--config")] + words[words.index("--config") + 2 :]
        command(name).make_context(name, words)


@pytest.mark.parametrize("name", COMMANDS)
def test_main_flags_are_the_first_section(name: str) -> None:
    names = [param.name for param in command(name).params]
    main = MAIN_FLAGS.get(name, ())
    assert set(main) <= set(names) and len(main) in (0, 5)
    if not main:
        assert len(names) <= 12  # so few that nothing needs to be set apart
        return
    text = help_of(name, 200)
    sections = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert sections[:2] == ["Main flags:", "Options:"]
    block = [line for line in text.partition("Main flags:\n")[2].partition("\n\n")[0].splitlines() if line[2] == "-"]
    flags = [next(param.opts[0] for param in command(name).params if param.name == each) for each in main]
    assert len(block) == 5 and all(flag in line for flag, line in zip(flags, block, strict=True))


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_is_ascii_and_fits(name: str, columns: int) -> None:
    done = CliRunner().invoke(cli, [*([name] if name else []), "--help"], terminal_width=columns, prog_name="lora-c")
    assert done.output.isascii()
    too_long = [line for line in done.output.splitlines() if len(line) > columns]
    assert not [line for line in too_long if " " in line.strip()], too_long


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_says_what_it_does(name: str) -> None:
    silent = [param.name for param in command(name).params if isinstance(param, click.Option) and not param.help]
    assert not silent


def test_help_of_the_program_has_the_exit_codes() -> None:
    text = " ".join(CliRunner().invoke(cli, ["--help"]).output.split())
    assert "Exit codes: 0 done; 1 refused or failed; 2 a flag, argument or key that is wrong or missing; 130 Ctrl" in text


def test_save_total_limit_says_what_is_kept() -> None:
    text = " ".join(help_of("train").split())
    assert "Keep only so many checkpoints, the last one among them. [default: 2]" in text
