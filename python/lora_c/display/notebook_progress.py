"""The progress of a run, or of loading, in a notebook (Jupyter, VS Code, Colab): one output that is replaced as it goes on.

It is an HTML display with an id, which every front end updates in place; ipywidgets are not needed, and a notebook that is
stored or converted afterwards shows the last state. IPython is there where a notebook is, and is never imported elsewhere.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from html import escape
from importlib import import_module
from typing import Any, TypeVar

from .measures import measures_text

_INTERVAL = 0.25  # seconds between two updates
_PATIENCE = 1.0  # seconds before loading is worth a place on the page
MARK = "lora-c-progress"  # class of the output

Item = TypeVar("Item")


def in_notebook() -> bool:
    """Whether this code runs in the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class Place:
    """One output of the cell, opened when something is shown first and replaced from then on.

    Parameters
    ----------
    patience : float
        Seconds in which nothing is shown yet.
    """

    def __init__(self, patience: float = 0.0) -> None:
        self._due = time.monotonic() + patience
        self._handle: Any = None
        self._lock = threading.Lock()  # what is said of a signal comes from another thread

    @property
    def is_open(self) -> bool:
        return self._handle is not None

    def show(self, text: Callable[[], str], force: bool = False) -> None:
        """Show the HTML that `text` makes, when it is time or has to be now. A front end that is gone ends nothing."""
        with self._lock, suppress(Exception):
            if not force and time.monotonic() < self._due:
                return
            self._due = time.monotonic() + _INTERVAL
            ipython: Any = import_module("IPython.display")
            page = ipython.HTML(text())
            if self._handle is None:
                self._handle = ipython.display(page, display_id=True)
            else:
                self._handle.update(page)


def bar_html(done: int, total: int, numbers: Sequence[str], lines: Sequence[str] = ()) -> str:
    """A bar, the numbers below it, and lines below these."""
    share = 100 * done / max(total, 1)
    bar = (
        '<div style="width:320px;max-width:100%;height:8px;border-radius:4px;background:rgba(128,128,128,0.3)">'
        f'<div style="width:{share:.1f}%;height:8px;border-radius:4px;background:#2171b5"></div></div>'
    )
    below = "".join(f"<div>{escape(line)}</div>" for line in lines)
    return f'<div class="{MARK}">{bar}<div>{escape(" · ".join(n for n in numbers if n))}</div>{below}</div>'


class NotebookProgress:
    """A bar with loss, held-out loss, speed and the time left."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._first = total, done
        self._step, self._messages = done, list[str]()
        self._loss, self._held_out, self._speed = "starting", "", ""
        self._began = time.monotonic()
        self._place = Place()
        self._place.show(self._text)

    def step(self, record: dict[str, Any]) -> None:
        self._step = record["step"]
        self._loss = f"loss {record['loss']:.4f}" if "loss" in record else "skipped"
        self._speed = f"{record['tokens_per_second']:,.0f} tokens/s"
        self._show(force=self._step == self._total)

    def evaluation(self, record: dict[str, Any]) -> None:
        self._held_out = f"held-out loss {record['eval_loss']:.4f}{measures_text(record)}"
        self._show()

    def message(self, text: str) -> None:
        self._messages.append(text)
        self._show(force=True)

    def end(self) -> None:
        """Show where it has ended."""
        self._show(force=True)

    def _show(self, force: bool = False) -> None:
        self._place.show(self._text, force)

    def _text(self) -> str:
        numbers = [f"{self._step:,} / {self._total:,} steps", self._time(), self._loss, self._held_out, self._speed]
        return bar_html(self._step, self._total, numbers, self._messages)

    def _time(self) -> str:
        spent, done = time.monotonic() - self._began, self._step - self._first
        if done <= 0:
            return ""
        left = spent / done * (self._total - self._step)
        return f"{_clock(spent)} < {_clock(left)}" if self._step < self._total else _clock(spent)


def tracked_in_notebook(items: Sequence[Item], title: str, patience: float = _PATIENCE) -> Iterator[Item]:
    """Yield the items, with a bar where that takes long."""
    place, began, done = Place(patience), time.monotonic(), 0

    def text() -> str:
        numbers = [title, f"{done:,} / {len(items):,}", _clock(time.monotonic() - began)]
        return bar_html(done, len(items), numbers)

    for item in items:
        yield item
        done += 1
        place.show(text)
    if place.is_open:
        place.show(text, force=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
