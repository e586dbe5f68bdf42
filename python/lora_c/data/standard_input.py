"""Standard input as a data file: ``--data -``. It is read once, and a piece at a time as files are."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from ..errors import DataError

STANDARD_INPUT = Path("-")  # a file of this name is given as ./-, and known by its absolute path
_PEEKED = 1 << 12  # bytes that say what it holds


@dataclass
class _Input:
    stream: io.BufferedReader
    kind: str = ""  # once it is known
    is_taken: bool = False


_inputs: WeakKeyDictionary[Any, _Input] = WeakKeyDictionary()


def name_of(path: Path) -> str:
    """What a data file is called in messages."""
    return "standard input" if path == STANDARD_INPUT else str(path)


def kind_of_input() -> str:
    """Return ".jsonl" where standard input begins with an object, ".txt" where it holds other text.

    Raises
    ------
    DataError
        It is a terminal, or a JSON array, which needs a file.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        raise DataError("data: expected data on standard input, got a terminal; pipe a file into it (… --data - < chat.jsonl)")
    found = _input()
    if not found.kind:
        found.kind = _kind(found.stream.peek(_PEEKED))
    return found.kind


def _kind(begin: bytes) -> str:
    start = b"".join(begin.removeprefix(b"\xef\xbb\xbf").split())[:2]
    if start in (b"[{", b'["', b"[["):
        raise DataError(
            "standard input: expected one JSON object per line or text, got a JSON array; write an object per line "
            "(jq -c '.[]'), or give the file"
        )
    return ".jsonl" if start[:1] == b"{" else ".txt"


def take_input() -> io.BufferedReader:
    """Return the bytes of standard input, which nobody else will get.

    Raises
    ------
    DataError
        They were taken before.
    """
    found = _input()
    if found.is_taken:
        raise DataError("data: expected standard input (-) once, got it a second time; it can be read only once")
    found.is_taken = True
    return found.stream


def _input() -> _Input:
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:
        raise DataError("data: expected data on standard input, got none that can be read; give a file")
    if sys.stdin not in _inputs:
        _inputs[sys.stdin] = _Input(buffer if isinstance(buffer, io.BufferedReader) else io.BufferedReader(buffer))
    return _inputs[sys.stdin]
