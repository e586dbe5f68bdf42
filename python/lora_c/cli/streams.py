"""What is printed fits the terminal: lines end between words, and letters that it does not have become others."""

from __future__ import annotations

import codecs
import io
import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

_HANDLER = "lora_c.ascii"
# What our own messages use beyond ASCII, and bars and tables of rich. Everything else is shown by its number.
_ASCII = {
    "–": "-", "—": "-", "…": "...", "·": "*", "×": "x", "→": "->", "←": "<-", "≥": ">=", "≤": "<=", "±": "+-", "≈": "~",
    "‘": "'", "’": "'", "“": '"', "”": '"', "•": "*", "━": "-", "╸": "-", "╺": "-", "─": "-", "│": "|", "█": "#", "░": ".",
    "▏": "|", "\u00a0": " ", "²": "^2", "µ": "u",
}  # fmt: skip
_NARROWEST = 20
_WHOLE = "{["  # a line that begins so is JSON
_LABEL = 10  # columns of the word that our lines begin with


def fit_streams() -> None:
    """Prepare standard output and standard error; files and pipes keep UTF-8 whatever the terminal can show."""
    codecs.register_error(_HANDLER, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)
            if stream.isatty() and _is_c_locale(os.environ):
                stream.reconfigure(encoding="ascii")
    sys.stderr = _fitting(sys.stderr)


@contextmanager
def fitting_output() -> Iterator[None]:
    """Break the lines of reports on standard output, too. Text of a model is not ours and is never broken."""
    before = sys.stdout
    sys.stdout = _fitting(before)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        sys.stdout = before


def _fitting(stream: Any) -> Any:
    is_plain = isinstance(stream, io.TextIOWrapper) and not isinstance(stream, FittingWriter)
    return FittingWriter(stream) if is_plain and stream.isatty() else stream


def _is_c_locale(environment: Any) -> bool:
    """Whether somebody asked for the locale of plain ASCII; without any locale Python takes UTF-8, and so do we."""
    if environment.get("PYTHONIOENCODING") or environment.get("PYTHONUTF8") == "1":
        return False
    names = [environment[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if environment.get(name)]
    return names[:1] in (["C"], ["POSIX"])


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    known = [_ASCII.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in letters]
    return "".join(known), error.end


class FittingWriter(io.TextIOWrapper):
    """A terminal's stream whose lines are broken between words; what moves the cursor passes as it is."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream.buffer, stream.encoding, stream.errors, line_buffering=True)
        self._replaced = stream  # would close the buffer that both write to

    def close(self) -> None:
        """Leave the stream below open: it is used again."""
        with suppress(OSError, ValueError):
            self.flush()
        self.detach()

    def write(self, text: str) -> int:
        if "\x1b" not in text and "\r" not in text:
            super().write(fitted(text, columns_of(self)))
            return len(text)
        return super().write(text)


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
