"""A chat without a terminal: one message per line of standard input, the answers alone on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from ..display.printable import printable, printable_pieces
from ..errors import ConfigError, LoraCError
from .commands import Commands


def talk(commands: Commands) -> int:
    """Answer every line and return the exit status: 1 where a line could not be answered. Empty lines are passed over."""
    status = 0
    for line in _lines():
        try:
            outcome = commands.run(line)
            if outcome.said:
                click.echo(printable(outcome.said), err=True)
            if outcome.leaves:
                break
            if outcome.reply is not None:
                if outcome.reply.forgotten:
                    click.echo(f"note      {forgotten_line(outcome.reply.forgotten)}", err=True)
                write_answer(outcome.reply.pieces)
        except LoraCError as error:
            click.echo(f"lora-c: {printable(str(error))}", err=True)
            status = 1
    return status


def write_answer(pieces: Iterator[str]) -> None:
    """Write an answer as it comes, without what a terminal would obey, and end its line."""
    for piece in printable_pieces(pieces):
        click.echo(piece, nl=False)
    click.echo()


def forgotten_line(turns: int) -> str:
    """What a person is told when turns go."""
    which = "the oldest turn was" if turns == 1 else f"the {turns} oldest turns were"
    return f"the context is full: {which} left out (/reset begins anew)"


def _lines() -> Iterator[str]:
    for raw in sys.stdin.buffer:
        try:
            yield raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise ConfigError("message: expected UTF-8 text on standard input, got other bytes") from None
