"""What is printed fits the terminal: lines end between words, and letters that it does not have become others."""

from __future__ import annotations

import codecs
import io
import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from ..files.system import HAS_CODE_PAGES

_HANDLER = "lora_c.ascii"
# What our own messages use beyond ASCII, and bars and tables of rich. Everything else is shown by its number.
_ASCII = {
    "–": "-", "—": "-", "…": "...", "·": "*", "×": "x", "→": "->", "←": "<-", "≥": ">=", "≤": "<=", "±": "+-", "≈": "~",
    "‘": "'", "’": "'", "“": '"', "”": '"', "•": "*", "━": "-", "╸": "-", "╺": "-", "─": "-", "│": "|", "█": "#", "░": ".",
    "▏": "|", "⟦": "[[", "⟧": "]]", "\u00a0": " ", "²": "^2", "µ": "u",
}  # fmt: skip
_NARROWEST = 20
_WHOLE = "{["  # a line that begins so is JSON
_LABEL = 10  # columns of the word that our lines begin with


def fit_streams() -> None:
    """Prepare standard output and standard error; files and pipes keep UTF-8 whatever the terminal can show."""
    codecs.register_error(_HANDLER, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_told = bool(os.environ.get("PYTHONIOENCODING"))
            to_file = HAS_CODE_PAGES and not is_told and not stream.isatty()
            stream.reconfigure(encoding="utf-8" if to_file else None, errors=_HANDLER)
    sys.stdout, sys.stderr = _for_terminal(sys.stdout, breaks=False), _for_terminal(sys.stderr, breaks=True)


@contextmanager
def fitting_output() -> Iterator[None]:
    """Break the lines of reports on standard output, too. Text of a model is not ours and is never broken."""
    stream = sys.stdout
    if isinstance(stream, TerminalWriter):
        stream.breaks = True
    try:
        yield
    finally:
        if isinstance(stream, TerminalWriter):
            stream.breaks = False


def _for_terminal(stream: Any, breaks: bool) -> Any:
    is_terminal = isinstance(stream, io.TextIOWrapper) and stream.isatty()
    return TerminalWriter(stream, breaks, _is_c_locale(os.environ)) if is_terminal else stream


def _is_c_locale(environment: Any) -> bool:
    """Whether somebody asked for the locale of plain ASCII; without any locale Python takes UTF-8, and so do we.

    Where it starts in the C locale, Python itself sets LC_CTYPE to C.UTF-8 (PEP 538); that says nothing of the terminal.
    """
    if environment.get("PYTHONIOENCODING") or environment.get("PYTHONUTF8") == "1":
        return False
    names = [environment.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG")]
    if names[1] in ("C.UTF-8", "C.utf8"):
        names[1] = None
    return next(filter(None, names), None) in ("C", "POSIX")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    known = [_ASCII.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in letters]
    return "".join(known), error.end


class TerminalWriter(io.TextIOWrapper):
    """A terminal's stream whose lines are broken between words; what moves the cursor passes as it is.

    Parameters
    ----------
    stream : io.TextIOWrapper
        Its buffer is written to.
    breaks : bool
        Whether lines are broken.
    is_ascii : bool
        Whether the terminal has no other letters. The stream's encoding stays: click takes one of ASCII for a mistake.
    """

    def __init__(self, stream: io.TextIOWrapper, breaks: bool, is_ascii: bool) -> None:
        super().__init__(stream.buffer, stream.encoding, stream.errors, line_buffering=True)
        self.breaks, self.is_ascii = breaks, is_ascii
        self._replaced = stream  # would close the buffer that both write to

    def write(self, text: str) -> int:
        shown = text.encode("ascii", _HANDLER).decode() if self.is_ascii else text
        if self.breaks and "\x1b" not in shown and "\r" not in shown:
            shown = fitted(shown, columns_of(self))
        super().write(shown)
        return len(text)


def columns_of(stream: IO[str]) -> int | None:
    """Columns of the terminal that a stream leads to; None for a file or a pipe."""
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream.isatty() else None
    except (OSError, ValueError):
        return None


def fitted(text: str, columns: int | None) -> str:
    """The text with its lines broken between words where they are longer than ``columns``; a word is never cut."""
    if columns is None or columns < _NARROWEST:
        return text
    return "\n".join(
        line if len(line) <= columns or line[0] in _WHOLE else _broken(line, columns) for line in text.split("\n")
    )


def _broken(line: str, columns: int) -> str:
    has_label = line[_LABEL - 1 : _LABEL] == " " and line[_LABEL : _LABEL + 1] != " " and ": " not in line[:_LABEL]
    margin = " " * (len(line) - len(line.lstrip()) + 2)
    return "\n".join(
        textwrap.wrap(
            line, columns, subsequent_indent=" " * _LABEL if has_label else margin, expand_tabs=False,
            replace_whitespace=False, break_long_words=False, break_on_hyphens=False,
        )
    )  # fmt: skip
