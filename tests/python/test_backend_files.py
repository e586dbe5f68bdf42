"""Files that LORA_C_BACKENDS names and that are no backends: each is one line that says why, and is in nobody's way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lora_c as lc
from lora_c import _core

LIST = "import lora_c as lc\nfor d in lc.devices(): print(d.name, '|', d.reason)"


def listed(paths: bytes | str, folder: Path) -> list[str]:
    environment = {**os.environb, b"LORA_C_BACKENDS": os.fsencode(paths), b"PYTHONUTF8": b"1"}
    words = [sys.executable, "-c", LIST]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode("utf-8").splitlines()


def test_what_is_no_whole_library_is_said_before_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "cut.so").write_bytes(Path(_core.__file__).read_bytes()[:100_000])
    os.mkfifo(tmp_path / "pipe.so")
    (tmp_path / "text.so").write_text("no library")
    (tmp_path / "folder.so").mkdir()
    lines = listed("./cut.so:./pipe.so:text.so:./folder.so", tmp_path)
    assert [line.split(" |")[0] for line in lines] == ["cpu", "cut.so", "pipe.so", "text.so", "folder.so"]
    for line, why in zip(lines[1:], ("one that is cut off", "no regular file", "invalid ELF header", "a folder"), strict=True):
        assert why in line or (why == "invalid ELF header" and "too short" in line), line


def test_names_of_any_bytes_and_any_number_are_listed(tmp_path: Path) -> None:
    assert "�" in listed(b"/\xff\xfe", tmp_path)[1]
    assert len(listed(":".join(f"/nowhere/{i}.so" for i in range(150)), tmp_path)) == 151


def test_a_library_that_is_named_twice_is_one(fake: str, tmp_path: Path) -> None:
    path = os.environ["LORA_C_BACKENDS"]
    assert [line.split(" |")[0] for line in listed(f"{path}:{path}", tmp_path)] == ["cpu", "fake", "fake:broken"]


def test_a_parameter_shows_where_it_lies(fake: str) -> None:
    assert repr(lc.Parameter(np.ones((2, 3), np.float32), name="a", device=fake)) == (
        f"Parameter('a', shape=(2, 3), requires_grad=True, device='{fake}')"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"m": [[np.nan]]}, "expected finite values under m, got nan"),
        ({"v": [[-1.0]]}, "expected finite values >= 0 under v, got -1"),
        ({"v": [[np.inf]]}, "expected finite values >= 0 under v, got inf"),
        ({"step": 2**63 - 1}, "expected 0 <= step < 2\\*\\*62, got 9223372036854775807"),
    ],
)
def test_a_state_that_no_optimizer_has_is_refused(change: dict, said: str) -> None:
    parameter = lc.Parameter(np.ones(1, np.float32))
    optimizer = lc.AdamW([parameter])
    state = {key: [np.array(x, np.float32) for x in value] if key != "step" else value for key, value in change.items()}
    with pytest.raises(ValueError, match=said):
        optimizer.load_state_dict(optimizer.state_dict() | state)
    assert optimizer.step_count == 0
