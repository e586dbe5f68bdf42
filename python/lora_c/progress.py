"""What a person sees while training: a bar on a terminal, one line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from .steady_stream import steady


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
            self.message(
                f"step {record['step']}/{self.total}  loss {record['loss']:.4f}  {record['tokens_per_second']:,.0f} tokens/s"
            )

    def evaluation(self, record: dict[str, Any]) -> None:
        self.message(f"step {record['step']}/{self.total}  held-out loss {record['eval_loss']:.4f}")

    def message(self, text: str) -> None:
        with suppress(OSError, ValueError):  # closed, say
            print(text, file=sys.stderr, flush=True)


class BarProgress:
    """A rich bar: loss, held-out loss, tokens per second, time left."""

    def __init__(self, bar: Any, total: int, done: int) -> None:
        self.bar = bar
        self.task = bar.add_task("training", total=total, completed=done, loss="–", held_out="", speed="")

    def step(self, record: dict[str, Any]) -> None:
        self.bar.update(
            self.task,
            completed=record["step"],
            loss=f"{record['loss']:.4f}",
            speed=f"{record['tokens_per_second']:,.0f} tokens/s",
        )

    def evaluation(self, record: dict[str, Any]) -> None:
        self.bar.update(self.task, held_out=f"held-out {record['eval_loss']:.4f}")

    def message(self, text: str) -> None:
        self.bar.console.print(text)


@contextmanager
def open_progress(total: int, done: int = 0) -> Iterator[Progress]:
    """A bar when stderr is a terminal, plain lines otherwise."""
    if not sys.stderr.isatty():
        yield PlainProgress(total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[held_out]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(file=steady(sys.stderr))) as bar:
        yield BarProgress(bar, total, done)
