"""The progress of a run in a notebook (Jupyter, VS Code, Colab): one output that is replaced as the run goes on.

It is an HTML display with an id, which every front end updates in place; ipywidgets are not needed, and a notebook that is
stored or converted afterwards shows the last state. IPython is there where a notebook is, and is never imported elsewhere.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from html import escape
from importlib import import_module
from typing import Any

_INTERVAL = 0.25  # seconds between two updates
MARK = "lora-c-progress"  # class of the output


def in_notebook() -> bool:
    """Whether this code runs in the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookProgress:
    """A bar with loss, held-out loss, speed and the time left."""

    def __init__(self, total: int, done: int) -> None:
        display: Any = import_module("IPython.display")
        self._html = display.HTML
        self._total, self._first = total, done
        self._step, self._messages = done, list[str]()
        self._loss, self._held_out, self._speed = "starting", "", ""
        self._began = time.monotonic()
        self._shown_at = 0.0
        self._handle: Any = display.display(self._html(self._text()), display_id=True)

    def step(self, record: dict[str, Any]) -> None:
        self._step = record["step"]
        self._loss, self._speed = f"loss {record['loss']:.4f}", f"{record['tokens_per_second']:,.0f} tokens/s"
        self._show(force=self._step == self._total)

    def evaluation(self, record: dict[str, Any]) -> None:
        self._held_out = f"held-out loss {record['eval_loss']:.4f}"
        self._show()

    def message(self, text: str) -> None:
        self._messages.append(text)
        self._show(force=True)

    def end(self) -> None:
        """Show where it has ended."""
        self._show(force=True)

    def _show(self, force: bool = False) -> None:
        now = time.monotonic()
        if self._handle is None or not force and now - self._shown_at < _INTERVAL:
            return
        self._shown_at = now
        with suppress(Exception):  # a front end that is gone ends no run
            self._handle.update(self._html(self._text()))

    def _text(self) -> str:
        numbers = [f"{self._step:,} / {self._total:,} steps", self._time(), self._loss, self._held_out, self._speed]
        share = 100 * self._step / max(self._total, 1)
        bar = (
            '<div style="width:320px;max-width:100%;height:8px;border-radius:4px;background:rgba(128,128,128,0.3)">'
            f'<div style="width:{share:.1f}%;height:8px;border-radius:4px;background:#2171b5"></div></div>'
        )
        lines = "".join(f"<div>{escape(line)}</div>" for line in self._messages)
        return f'<div class="{MARK}">{bar}<div>{escape(" · ".join(n for n in numbers if n))}</div>{lines}</div>'

    def _time(self) -> str:
        spent, done = time.monotonic() - self._began, self._step - self._first
        if done <= 0:
            return ""
        left = spent / done * (self._total - self._step)
        return f"{_clock(spent)} < {_clock(left)}" if self._step < self._total else _clock(spent)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
