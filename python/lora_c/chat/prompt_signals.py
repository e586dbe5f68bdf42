"""Signals and failures while prompt_toolkit waits for a line: each ends the prompt, none is lost in it and none keeps it.

It draws from callbacks of an event loop. What the handler of a signal raises inside of those may be dropped, and when drawing
fails (a terminal that was closed) it wants Enter on that terminal before it goes on: the process would stay for ever.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application
from prompt_toolkit.application.current import get_app, get_app_or_none

from ..files.system import STOPPING
from ..training.interrupt import Stopped


def read_line(session: PromptSession[str]) -> str:
    """What the person enters; `Stopped` for SIGTERM and SIGHUP, and whatever fails while the line is drawn."""
    with _ended_by_signals():
        return session.prompt(set_exception_handler=False, pre_run=_end_by_failures)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the prompt from its loop; a second one, and one outside of it, is answered as everywhere."""
    first: list[int] = []
    handlers = {number: signal.getsignal(number) for number in STOPPING if number != signal.SIGINT}

    def tell(number: int, frame: FrameType | None) -> None:
        app = get_app_or_none()
        if first or app is None or app.loop is None:
            handlers[number](number, frame)  # type: ignore[operator, misc]
            return
        first.append(number)
        with suppress(RuntimeError):  # the loop has just been closed
            app.loop.call_soon_threadsafe(_leave, app, Stopped(number))

    told = [number for number, handler in handlers.items() if callable(handler)]
    for number in told:
        signal.signal(number, tell)
    try:
        yield
    finally:
        for number in told:
            signal.signal(number, handlers[number])
        if first:
            raise Stopped(first[0])


def _end_by_failures() -> None:
    """Run inside of the prompt's loop: what fails in a callback fails the prompt."""
    app = get_app()

    def fail(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not _leave(app, error or RuntimeError(context["message"])):
            loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(fail)


def _leave(app: Application[Any], error: BaseException) -> bool:
    """End the prompt with this error; False where it ends already."""
    if app.future is None or app.future.done():
        return False
    app.exit(exception=error)
    return True
