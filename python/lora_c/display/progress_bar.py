"""The bars of a terminal. Colours mean something: cyan is under way, green is done, yellow was stopped, red has failed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import RenderableType
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.style import Style
from rich.text import Text

from .console import TextConsole
from .steady_stream import steady

UNDER_WAY, DONE, STOPPED, FAILED = "cyan", "green", "yellow", "red"
_SHORTEST_BAR = 8
_GAP = 1  # between two columns


def bar_column() -> BarColumn:
    """A bar as wide as there is room, in the colours of this package."""
    return BarColumn(
        bar_width=None, style="bright_black", complete_style=UNDER_WAY, finished_style=DONE, pulse_style=UNDER_WAY
    )


class StepsColumn(ProgressColumn):
    """120/2,000, as wide from the first step on."""

    def render(self, task: Task) -> Text:
        total = f"{int(task.total or 0):,}"
        return Text(f"{int(task.completed):>{len(total)},}/{total}")


class TimeColumn(ProgressColumn):
    """The time that is left; the time that it took when all is done."""

    def __init__(self) -> None:
        super().__init__()
        self._left, self._taken = TimeRemainingColumn(), TimeElapsedColumn()

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"{self._taken.render(task).plain} in all")
        return Text(f"{self._left.render(task).plain} left")


class FittingProgress(RichProgress):
    """Columns that fit the terminal: the speed goes first, then the held-out loss, then the bar, then the loss.

    Steps and the time that is left always stay. Measured at each refresh, because windows change.
    """

    def __init__(self, console: TextConsole) -> None:
        self.bar = bar_column()
        self.loss, self.held_out, self.speed = (TextColumn(f"{{task.fields[{key}]}}") for key in ("loss", "held_out", "speed"))
        self.all_columns = (
            TextColumn("[bold]{task.description}"), self.bar, StepsColumn(), self.loss, self.held_out, self.speed,
            TimeColumn(),
        )  # fmt: skip
        super().__init__(*self.all_columns, console=console)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The table of the tasks with the columns that fit."""
        if self.tasks:
            self.columns = tuple(self._fitting())
        return super().get_renderables()

    def _fitting(self) -> list[Any]:
        columns = [column for column in self.all_columns if self._width(column)]
        for least in (self.speed, self.held_out, self.bar, self.loss, self.all_columns[0]):
            if sum(self._width(column) + _GAP for column in columns) - _GAP <= self.console.width:
                break
            columns = [column for column in columns if column is not least]
        return columns

    def _width(self, column: Any) -> int:
        if column is self.bar:
            return _SHORTEST_BAR
        texts = [column.render(task) for task in self.tasks]
        return max((text.cell_len for text in texts), default=0)

    def paint(self, colour: str) -> None:
        """Give the bar the colour of how it ended."""
        self.bar.complete_style = self.bar.finished_style = Style.parse(colour)


class BarProgress:
    """A bar with steps, loss, held-out loss, tokens per second and the time that is left."""

    def __init__(self, bar: FittingProgress, total: int, done: int) -> None:
        self.bar, self._is_shown = bar, False
        self.task = bar.add_task("training", total=total, completed=done, loss="", held_out="", speed="")

    def step(self, record: dict[str, Any]) -> None:
        self.bar.update(
            self.task,
            completed=record["step"],
            loss=f"loss {record['loss']:.4f}" if "loss" in record else "skipped",
            speed=f"{record['tokens_per_second']:,.0f} tokens/s",
        )
        if not self._is_shown:  # at once, however short the run is
            self._is_shown = True
            self.bar.refresh()

    def evaluation(self, record: dict[str, Any]) -> None:
        self.bar.update(self.task, held_out=f"held-out {record['eval_loss']:.4f}")

    def message(self, text: str) -> None:
        self.bar.console.print(Text(text))


@contextmanager
def open_bar(total: int, done: int = 0) -> Iterator[BarProgress]:
    """Draw the bar on standard error until the block ends; what ends it too early is seen by its colour."""
    with FittingProgress(TextConsole(file=steady(sys.stderr))) as bar:
        progress = BarProgress(bar, total, done)
        try:
            yield progress
        except Exception:
            bar.paint(FAILED)
            raise
        if not bar.finished:
            bar.paint(STOPPED)


def tracked(items: list[Any], title: str) -> Iterator[Any]:
    """Yield the items, with a bar that vanishes at the end."""
    columns = (TextColumn("{task.description}"), bar_column(), StepsColumn(), TimeColumn())
    with RichProgress(*columns, console=TextConsole(file=sys.stderr), transient=True) as bar:
        yield from bar.track(items, description=title)
