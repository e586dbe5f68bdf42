"""What a person sees while training: a bar on a terminal, one line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, Protocol

from .measures import measures_text
from .notebook_progress import NotebookProgress, in_notebook


class Progress(Protocol):
    def step(self, record: dict[str, Any]) -> None: ...
    def evaluation(self, record: dict[str, Any]) -> None: ...
    def message(self, text: str) -> None: ...


class PlainProgress:
    """Lines for logs and pipes, at most one every ``interval`` seconds. A log that is full or gone ends no run."""

    def __init__(self, total: int, interval: float = 5.0) -> None:
        self.total, self.interval, self._last = total, interval, 0.0

    def step(self, record: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._last >= self.interval or record["step"] == self.total:
            self._last = now
            loss = f"loss {record['loss']:.4f}" if "loss" in record else "skipped"
            self.message(f"step {record['step']}/{self.total}  {loss}  {record['tokens_per_second']:,.0f} tokens/s")

    def evaluation(self, record: dict[str, Any]) -> None:
        self.message(f"step {record['step']}/{self.total}  held-out loss {record['eval_loss']:.4f}{measures_text(record)}")

    def message(self, text: str) -> None:
        with suppress(OSError, ValueError):  # closed, say
            print(text, file=sys.stderr, flush=True)


class NoProgress:
    """Of a process that prints nothing."""

    def step(self, record: dict[str, Any]) -> None: ...
    def evaluation(self, record: dict[str, Any]) -> None: ...
    def message(self, text: str) -> None: ...


def draws_bars(stream: IO[str] | None) -> bool:
    """Whether a stream is a terminal that can move its cursor."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


@contextmanager
def open_progress(total: int, done: int = 0, shows: bool = True) -> Iterator[Progress]:
    """A bar when stderr is a terminal, one output in a notebook, plain lines otherwise."""
    if not shows:
        yield NoProgress()
        return
    if in_notebook():
        notebook = NotebookProgress(total, done)
        try:
            yield notebook
        finally:
            notebook.end()
        return
    if not draws_bars(sys.stderr):
        yield PlainProgress(total)
        return
    from .progress_bar import open_bar

    with open_bar(total, done) as bar:
        yield bar
