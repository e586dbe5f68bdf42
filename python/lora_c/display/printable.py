"""What of a model's text may reach a terminal: no control characters but new lines and tabs, no escape sequences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_LONGEST = 200  # characters of an operating system command; a longer one is text behind two odd characters

# A control sequence (colours, the cursor), a command (titles, links, the clipboard), and what else begins with an escape.
_SEQUENCE = (
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    rf"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]{{0,{_LONGEST}}}(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"
_UNWANTED = re.compile(f"{_SEQUENCE}|{_CONTROL}")
_BEGUN = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,8}\Z"
    rf"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]{{0,{_LONGEST}}}\x1b?\Z"
    r"|\x1b[ -/]{0,8}\Z"
)


def printable(text: str) -> str:
    """Return a whole text without what a terminal would obey."""
    return _UNWANTED.sub("", text)


def printable_pieces(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of a text without that, each as soon as it comes."""
    clean = PrintablePieces()
    for piece in pieces:
        yield clean.push(piece)
    yield clean.flush()


class PrintablePieces:
    """As `printable`, piece by piece: the beginning of a sequence waits for the rest."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, piece: str) -> str:
        """Return what can be printed by now."""
        text = self._held + piece
        begun = _BEGUN.search(text)
        self._held = text[begun.start() :] if begun else ""
        return printable(text[: begun.start()] if begun else text)

    def flush(self) -> str:
        """Return what was held back, after the last piece."""
        text, self._held = self._held, ""
        return printable(text)
