"""Tab in a shell: the scripts, and what bash is answered."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from lora_c.cli import cli
from lora_c.cli.commands import COMMANDS


def script(shell: str) -> str:
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0
    return done.stdout


def completed(*words: str) -> list[str]:
    """The values that are offered for the last word."""
    found = BashComplete(cli, {}, "lora-c", "_LORA_C_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return [f"{item.type}:{item.value}" if item.type != "plain" else item.value for item in found]


@pytest.mark.parametrize(
    ("shell", "mark"), [("bash", "complete -o nosort"), ("zsh", "#compdef lora-c"), ("fish", "complete --")]
)
def test_there_is_a_script_for_each_shell(shell: str, mark: str) -> None:
    text = script(shell)
    assert mark in text and "_LORA_C_COMPLETE" in text and "lora-c" in text


def test_commands_flags_values_and_paths_are_completed() -> None:
    assert completed("") == list(COMMANDS) and completed("tr") == ["train"]
    assert "--learning-rate" in completed("train", "--le") and completed("train", "--method", "q") == ["qlora"]
    assert completed("train", "--model", "x") == ["file:x"] and completed("train", "--output-dir", "") == ["file:"]
    assert completed("merge", "--model", "a", "--dtype", "f") == ["float32", "float16", "fp4", "fp4_e2m1"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    program = tmp_path / "lora-c"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lora_c "$@"\n')
    program.chmod(0o755)
    (tmp_path / "c.sh").write_text(script("bash"))
    ask = 'source c.sh; COMP_WORDS=(lora-c eval --js); COMP_CWORD=2; _lora_c_completion ./lora-c; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("--json\n", "")


def test_an_unknown_shell_is_a_usage_error() -> None:
    done = CliRunner().invoke(cli, ["completion", "tcsh"])
    assert done.exit_code == 2 and "bash" in done.output and "Traceback" not in done.output
