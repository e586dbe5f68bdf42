"""metrics.jsonl: a line for each step and each evaluation."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from ..files.atomic import write_text
from ..files.os_errors import reason
from ..notices import tell


class MetricsFile:
    """The file in the output folder, which one rank writes. Once a run has begun, a disk that is full does not end it."""

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.path = folder / "metrics.jsonl"
        self._writes, self._failed = writes, False

    def start(self, history: list[dict[str, Any]]) -> None:
        """Begin with what this run builds on: nothing, or the history of the checkpoint that it resumes from.

        Raises
        ------
        SaveError
            It cannot be written.
        """
        if self._writes:
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in history))

    def append(self, record: dict[str, Any]) -> None:
        """Add a line; the first failure is told, the run and its history go on."""
        if not self._writes:
            return
        try:
            with open(self.path, "ab", buffering=0) as file:
                before, line = file.tell(), (json.dumps(record) + "\n").encode()
                if file.write(line) != len(line):  # the disk took a part of it
                    file.truncate(before)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self._failed:
                tell(f"{self.path}: lines are missing from step {record['step']} on ({reason(error)})")
            self._failed = True
