"""Records of a run for TensorBoard, written by the package tensorboard itself."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .callbacks import TrainerState
from .reporting import Reporter

FOLDER = "tensorboard"
EXTRA = "pip install 'lora-c[tensorboard]'"


class TensorBoardCallback(Reporter):
    """Write what a run measures as TensorBoard's event files; `tensorboard --logdir FOLDER` shows them.

    A run that is resumed goes on in the same folder: what was written of steps behind its checkpoint is drawn no more.

    Parameters
    ----------
    folder : path, optional
        Where they are written; by default `tensorboard` in the output folder of the run.
    every : int
        Steps between two records of steps.

    Raises
    ------
    ConfigError
        The package tensorboard is not installed.
    """

    name = "tensorboard"

    def __init__(self, folder: str | os.PathLike[str] | None = None, every: int = 1) -> None:
        super().__init__(every)
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise ConfigError(
                f"report_to: expected the package tensorboard, got an installation without it; {EXTRA}"
            ) from None
        self._folder = None if folder is None else Path(folder)
        self._events: Any = event_pb2
        self._summaries: Any = summary_pb2
        self._new_writer: Any = EventFileWriter
        self._writer: Any = None

    def _begin(self, state: TrainerState) -> None:
        """Begin a file, in which steps from this one on take the place of those in files before it."""
        self._writer = self._new_writer(str(self._folder or state.output_dir / FOLDER))
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._writer.add_event(self._events.Event(step=state.step, wall_time=time.time(), session_log=start))

    def _write(self, values: Mapping[str, float], step: int) -> None:
        """Add the numbers of a step."""
        numbers = [self._summaries.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        summary = self._summaries.Summary(value=numbers)
        self._writer.add_event(self._events.Event(step=step, wall_time=time.time(), summary=summary))

    def _flush(self) -> None:
        """Write what waits to the file."""
        self._writer.flush()

    def _end(self, state: TrainerState) -> None:
        """End the file."""
        self._writer.close()
        self._writer = None
