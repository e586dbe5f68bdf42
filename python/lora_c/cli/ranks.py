"""`lora-c train` as one of several ranks: one of them prints, and the error of any other ends them all with its name."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import click

from .errors import describe, exit_code, expected

if TYPE_CHECKING:
    from ..comm.launched import Launched

_FIRST_SPEAKS = 2.0  # seconds in which rank 0 may say the same, where all ranks have the same error
_SAVES = 30.0  # the same where it saves a state before


def launch(value: str) -> None:
    """Become mpirun with this command line, unless it has started this process."""
    from ..comm.launch import launch_environment, mpirun_command, ranks_of
    from ..comm.launched import launched

    size = ranks_of(value)
    if launched() is not None or size == 1:
        return
    arguments = _without_launch(sys.argv[1:])
    line, reasons = mpirun_command(size, [sys.executable, "-m", "lora_c", *arguments])
    env = launch_environment(size)
    because = f" ({'; '.join(reasons)})" if reasons else ""
    threads, words = env["LORA_C_NUM_THREADS"], shlex.join(line[: -len(arguments)])
    click.echo(f"launch    {size} ranks, threads of each: {threads}: {words}{because}", err=True)
    sys.stdout.flush()
    os.execvpe(line[0], line, env)


def _without_launch(arguments: list[str]) -> list[str]:
    """The ranks have been launched."""
    kept, skip = [], False
    for argument in arguments:
        if skip or argument == "--launch" or argument.startswith("--launch="):
            skip = argument == "--launch" and not skip
            continue
        kept.append(argument)
    return kept


@contextmanager
def as_a_rank() -> Iterator[None]:
    """While `lora-c train` runs as one of several: only rank 0 prints, and an error on any rank ends all of them."""
    found = _launched() if sys.argv[1:2] == ["train"] else None
    if found is None:
        yield
        return
    if found.rank > 0:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        yield
    except SystemExit as error:
        if error.code not in (0, None):
            _end(found, f"ended with {error.code}", 1)
        raise
    except KeyboardInterrupt:
        raise  # the state is saved, and every rank is on its way out
    except BaseException as error:
        _wait_for_first(found, error)
        _end(found, _words(error), exit_code(error))


def _launched() -> Launched | None:
    from ..comm.launched import launched

    return launched()


def _wait_for_first(found: Launched, error: BaseException) -> None:
    """Ranks that all have the same error leave it to the first to say so; its abort ends them meanwhile."""
    from ..errors import DivergenceError

    if found.rank > 0:
        time.sleep(_SAVES if isinstance(error, DivergenceError) else _FIRST_SPEAKS)


def _words(error: BaseException) -> str:
    return describe(error) if expected(error) else "".join(traceback.format_exception(error)).rstrip()


def _end(found: Launched, text: str, code: int) -> NoReturn:
    """Say on which rank what has happened, and end them all."""
    from ..comm.world import world

    line = f"lora-c: rank {found.rank} of {found.size} on {socket.gethostname()}: {text}\n"
    try:
        os.write(2, line.encode(errors="backslashreplace"))
    except OSError:
        pass  # a log that is full or gone
    if world().size > 1:
        world().abort(code)
    os._exit(code)
