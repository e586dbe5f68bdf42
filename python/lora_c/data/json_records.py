"""JSON to records: one object per line, the items of an array one at a time, or a file that is one object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError, shorten
from ..files.json_files import unique_names
from .samples import KINDS
from .streams import BOM, DataFile, decode, text_blocks

MAX_LINE = 1 << 26  # bytes of one line, or characters of one item of an array
_SPACE = re.compile(r"[ \t\n\r]*")
_CUT_OFF = 12  # characters before the end of a buffer within which an error may come from the cut: \ud83d\ude00

Record = tuple[str, dict[str, Any] | DataError]  # an error where the next record can still be read


def read_json(path: Path, is_lines: bool) -> Iterator[Record]:
    """Yield (where, record) of every example.

    Parameters
    ----------
    is_lines : bool
        Whether the name of the file promises one object per line.
    """
    with DataFile(path) as file:
        if is_lines:
            yield from _read_lines(file)
            return
        line = _first_line(file)
        if line[:1] == b"[":
            yield from _read_array(JsonStream(path))
        elif line[:1] == b"{" and not _is_json(line):
            yield _read_one(JsonStream(path))
        else:
            file.rewind()
            yield from _refuse_single_table(_read_lines(file))


def _first_line(file: DataFile) -> bytes:
    """The first line that holds anything, or its begin."""
    line = file.readline(MAX_LINE).removeprefix(BOM)
    while line and not line.strip():
        line = file.readline(MAX_LINE)
    return line.lstrip()


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _read_lines(file: DataFile) -> Iterator[Record]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        where = f"{file.name}:{number}"
        if len(line) > MAX_LINE:
            raise DataError(f"{where}: expected lines of at most {MAX_LINE >> 20} MiB, got a longer one; is this JSONL?")
        line = line.removeprefix(BOM) if number == 1 else line
        record = _object_of(line, where)
        if record is not None:
            yield where, record


def _object_of(line: bytes, where: str) -> dict[str, Any] | DataError | None:
    """The object of a line, or what is wrong with it; None where it is blank."""
    try:
        text = decode(line, where)
        return _need_object(_parse(text.rstrip("\r\n"), where), where) if text.strip() else None
    except DataError as error:
        return error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_names)
    except json.JSONDecodeError as error:
        got = text.strip()[:40]
        raise DataError(f"{where}: expected a JSON object, got {got!r} ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise _not_flat(error, where) from None


def _not_flat(error: Exception, where: str) -> DataError:
    reason = "one nested too deeply" if isinstance(error, RecursionError) else str(error)
    return DataError(f"{where}: expected a flat JSON object, got {reason}")


def _need_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _no_object(value, where)
    return value


def _no_object(value: Any, where: str) -> DataError:
    return DataError(f"{where}: expected a JSON object, got a {type(value).__name__}")


class JsonStream:
    """The values of a JSON text in their order, from a buffer that slides over the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._blocks = text_blocks(path)
        self._text = ""
        self._at = 0
        self._line, self._column = 1, 1  # of the first character in the buffer

    def peek(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def skip(self) -> None:
        """Go past the character that `peek` has shown."""
        self._at += 1

    def value(self, where: str) -> Any:
        """The value that begins here."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                wrong = self.error(error.msg, error.pos)
                cut_off = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _CUT_OFF
                if not (cut_off and self._more(where)):
                    raise wrong from None
            except (ValueError, RecursionError) as error:
                raise _not_flat(error, where) from None
            else:
                if end < len(self._text) or self._text[end - 1] in '}]"':
                    self._at = end
                    return value
                if not self._more(where):  # a number may go on behind the buffer
                    self._at = len(self._text)
                    return value

    def error(self, reason: str, at: int | None = None) -> DataError:
        """The error at a place in the buffer, by default the present one."""
        at = self._at if at is None else at
        lines = self._text.count("\n", 0, at)
        column = at - self._text.rfind("\n", 0, at) if lines else self._column + at
        got = self._text[at : at + 40] or self._text[max(0, at - 20) : at]
        place = f"line {self._line + lines}, column {column}"
        return DataError(f"{self.path}: expected a JSON object, got {got!r} ({reason}, {place})")

    def _more(self, where: str = "") -> bool:
        """Let go of what was read, and read as much again as is left."""
        lines = self._text.count("\n", 0, self._at)
        self._column = self._at - self._text.rfind("\n", 0, self._at) if lines else self._column + self._at
        self._line += lines
        parts, self._at = [self._text[self._at :]], 0
        left = size = len(parts[0])
        if left > MAX_LINE:
            raise DataError(
                f"{where or self.path}: expected at most {MAX_LINE >> 20} MiB in one piece, got more; write one example per "
                "line (JSONL)"
            )
        while size <= 2 * left and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            size += len(block)
        self._text = "".join(parts)
        return size > left


_DECODER = json.JSONDecoder(object_pairs_hook=unique_names)


def _read_array(stream: JsonStream) -> Iterator[Record]:
    stream.peek()
    stream.skip()
    number = 0
    while stream.peek() != "]" or number:
        number += 1
        where = f"{stream.path}, item {number}"
        value = stream.value(where)
        yield where, value if isinstance(value, dict) else _no_object(value, where)
        if stream.peek() != ",":
            break
        stream.skip()
        stream.peek()
    if stream.peek() != "]":
        raise stream.error("Expecting ',' delimiter")
    stream.skip()
    if stream.peek():
        raise stream.error("Extra data")


def _read_one(stream: JsonStream) -> Record:
    where = f"{stream.path}, item 1"
    record = _need_object(stream.value(where), where)
    if stream.peek():
        raise stream.error("one object per line, or an array of objects, can be read")
    return next(_refuse_single_table(iter([(where, record)])))


def _refuse_single_table(records: Iterator[Record]) -> Iterator[Record]:
    """A file with one object that holds lists of examples is no example."""
    first, second = next(records, None), next(records, None)
    if first is None:
        return
    where, record = first
    if isinstance(record, DataError):
        record = {}
    lists = [key for key, value in record.items() if isinstance(value, (list, dict))]
    if second is None and lists and not any(kind in record for kind in KINDS):
        raise DataError(
            f"{where}: expected one example per line or an array of examples, got one object that holds {shorten(lists)}; "
            "write the list of examples as a file of its own"
        )
    yield first
    if second is not None:
        yield second
        yield from records
