"""Two runs at a time in one folder are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lora_c.errors import ConfigError
from lora_c.runs.lock import run_lock

HOLD = """
import sys
from lora_c.runs.lock import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="expected a folder that no other run writes into"), run_lock(tmp_path):
            pass
        other.kill()  # however it ends, the lock ends with it
    with run_lock(tmp_path), run_lock(tmp_path):  # one process may lock it twice: the command line, then the trainer
        pass
    with run_lock(tmp_path):
        pass
