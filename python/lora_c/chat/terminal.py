"""A chat on a terminal, with prompt_toolkit: editing, history, several lines, and an answer that Ctrl-C cuts."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import termios
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import FormattedText

from ..display.printable import printable
from ..errors import LoraCError
from ..files.uninterrupted import throw, uninterrupted
from ..training.interrupt import Stopped
from .commands import Commands, Outcome
from .completion import CommandCompleter
from .history import PrivateHistory, open_history
from .keys import chat_keys, without_quotes
from .piped import forgotten_line, write_answer
from .prompt_signals import read_line

GREETING = "Enter sends, Esc-Enter begins a line, /help lists commands, Ctrl-D leaves."
HOW_TO_LEAVE = "Ctrl-D or /bye leaves."
CUT = "dropped"
_PASTE_ON, _PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"
_LFLAG, _IFLAG = 3, 0  # places in what termios.tcgetattr returns


def talk(commands: Commands) -> int:
    """Read messages and write answers until Ctrl-D; return the exit status."""
    chat = TerminalChat(commands)
    with _interrupts_for(chat):
        try:
            chat.say(GREETING)
            while chat.turn():
                pass
        except OSError:
            if not _is_closed():
                raise
        finally:
            _forget_typed()
    if _is_closed():  # which is seen before its signal has come, at times
        raise Stopped(signal.SIGHUP)
    return 0


class TerminalChat:
    """One line after another, each with what comes of it.

    Attributes
    ----------
    is_answering : bool
        Whether Ctrl-C has something to cut. Everywhere else but at the prompt it does nothing: one too many ends no chat.
    """

    def __init__(self, commands: Commands) -> None:
        self.is_answering = False
        self._commands = commands
        self._history = open_history()
        self._session: PromptSession[str] = PromptSession(
            message=FormattedText([("ansicyan", "you  ")]),
            prompt_continuation=lambda width, number, wrapped: " " * width,
            multiline=True,
            history=self._history,
            key_bindings=chat_keys(),
            completer=CommandCompleter(commands),
            complete_while_typing=False,
            enable_suspend=True,
            enable_history_search=False,
        )

    def turn(self) -> bool:
        """One line; False when the person leaves."""
        try:
            line = without_quotes(read_line(self._session))
        except EOFError:
            return False
        except KeyboardInterrupt as error:
            _reraise_others(error)
            self.say(HOW_TO_LEAVE)
            return True
        try:
            self._tell_lost_history()
            return self._act(line)
        except KeyboardInterrupt as error:
            _reraise_others(error)
            self.say(f"\n{CUT}")
        except LoraCError as error:
            self.say(str(error))
        except MemoryError as error:
            self.say(f"memory: expected enough, got: {error or 'none left'}; write a shorter message, or /reset")
        finally:
            self.is_answering = False
        return True

    def say(self, text: str) -> None:
        """Lines for the person that are no part of the conversation, broken between words."""
        width = shutil.get_terminal_size().columns
        lines = [line if len(line) <= width else _broken(line, width) for line in printable(text).split("\n")]
        shown = "\n".join(lines)
        click.echo(click.style(shown, dim=True) if shown and not os.environ.get("NO_COLOR") else shown)

    def _act(self, line: str) -> bool:
        with _answering():
            self.is_answering = True
            outcome: Outcome = self._commands.run(line)
            if outcome.said:
                self.say(outcome.said)
            if outcome.reply is not None:
                if outcome.reply.forgotten:
                    self.say(forgotten_line(outcome.reply.forgotten))
                click.echo(("model" if os.environ.get("NO_COLOR") else click.style("model", fg="green")) + "  ", nl=False)
                self._write(outcome.reply.pieces)
        return not outcome.leaves

    def _write(self, pieces: Iterator[str]) -> None:
        try:
            write_answer(pieces)
        except LoraCError:
            click.echo()  # what is said of it stands in a line of its own
            raise

    def _tell_lost_history(self) -> None:
        if isinstance(self._history, PrivateHistory) and (why := self._history.failure_to_tell()) is not None:
            self.say(f"The history of lines is not kept: {why}")


def _reraise_others(error: KeyboardInterrupt) -> None:
    """Only Ctrl-C is the chat's; SIGTERM and SIGHUP are kinds of it that end the program."""
    if type(error) is not KeyboardInterrupt:
        raise error


def _broken(line: str, width: int) -> str:
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)


@contextmanager
def _answering() -> Iterator[None]:
    """What is typed meanwhile is not shown and waits for the next prompt as it is, a paste as one paste."""
    try:
        before = termios.tcgetattr(sys.stdin)
    except termios.error:
        yield
        return
    quiet = termios.tcgetattr(sys.stdin)
    quiet[_LFLAG] &= ~(termios.ECHO | termios.ICANON)
    quiet[_IFLAG] &= ~termios.ICRNL
    try:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
        click.echo(_PASTE_ON, nl=False)
        yield
    finally:
        with uninterrupted(), suppress(termios.error, OSError):
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
            click.echo(_PASTE_OFF, nl=False)


@contextmanager
def _interrupts_for(chat: TerminalChat) -> Iterator[None]:
    """Ctrl-C ends an answer and not the program; at the prompt it is a key like others."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if chat.is_answering:
            chat.is_answering = False
            throw(KeyboardInterrupt())

    before = signal.getsignal(signal.SIGINT)
    if not callable(before):  # ignored, by nohup or a shell script
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _is_closed() -> bool:
    """Whether the terminal that the chat began on is gone."""
    return not os.isatty(sys.stdin.fileno())


def _forget_typed() -> None:
    """What was typed and not read goes away: the shell that follows would run it."""
    with suppress(termios.error, OSError, ValueError):
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
