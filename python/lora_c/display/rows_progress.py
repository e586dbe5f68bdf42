"""How far a list of long tasks is: a bar on a terminal, a line for each that is done everywhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from .console import TextConsole
from .progress_bar import StepsColumn, bar_column
from .steady_stream import steady


class RowsProgress:
    """Told when a task begins, and what came of it."""

    def __init__(self, bar: Progress | None, task: TaskID | None) -> None:
        self._bar, self._task = bar, task

    def begin(self, name: str) -> None:
        """A task begins; its name stands before the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=name, refresh=True)

    def end(self, line: str) -> None:
        """A task is done; the line stays."""
        if self._bar is None or self._task is None:
            print(line, file=sys.stderr, flush=True)
            return
        self._bar.console.print(Text(line))
        self._bar.advance(self._task)


@contextmanager
def open_rows(total: int) -> Iterator[RowsProgress]:
    """Draw the bar on standard error while the block runs, where that is a terminal; it vanishes at the end."""
    if not sys.stderr.isatty():
        yield RowsProgress(None, None)
        return
    columns = (TextColumn("[bold]{task.description}"), bar_column(), StepsColumn(), TimeElapsedColumn())
    with Progress(*columns, console=TextConsole(file=steady(sys.stderr)), transient=True) as bar:
        yield RowsProgress(bar, bar.add_task("base", total=total))
