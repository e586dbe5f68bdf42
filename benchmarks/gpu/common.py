"""What the parts share: their options, and the rows that they print."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "build" / "release"


def options(description: str | None, *more: str) -> argparse.Namespace:
    """Read the options of a part: device, backend, tiny, and the positional ones in ``more``."""
    parser = argparse.ArgumentParser(description=description)
    for name in more:
        parser.add_argument(name)
    parser.add_argument("--device", default="cuda", help="as lora-c names it")
    parser.add_argument("--backend", default="", help="the device's library, for the C programs")
    parser.add_argument("--tiny", action="store_true", help="sizes that an emulated device can do")
    return parser.parse_args()


def emit(**row: Any) -> None:
    """Print a row of the result."""
    print(json.dumps(row), flush=True)


@contextmanager
def row_of(**about: Any) -> Iterator[dict[str, Any]]:
    """Emit what the block puts into the row, or why it failed: out of memory at one size is a result like others."""
    row, begin = dict(about), time.perf_counter()
    try:
        yield row
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
    emit(**row, whole_seconds=round(time.perf_counter() - begin, 3))


def said_by(command: Sequence[str], seconds: float, env: dict[str, str] | None = None) -> tuple[int | None, str]:
    """Run a program; return its status (None: it took longer) and what it said on both outputs."""
    pipe = subprocess.PIPE
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        return None, said.decode(errors="replace") if isinstance(said, bytes) else said
    return done.returncode, done.stdout
