"""Bytes and text of a data file, plain or gzip, a piece at a time: memory goes with what is asked for, not with the file."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from ..errors import DataError
from ..files.regular_file import open_regular
from .standard_input import STANDARD_INPUT, name_of, take_input

READ_BYTES = 1 << 18
MAX_LINE = 1 << 26  # characters of one line of a table
MAX_UNPACKED = 1 << 26  # bytes that any gzip file may unpack to; beyond that MAX_RATIO counts
MAX_RATIO = 200  # text packs by 3 to 30, the format allows 1,032
BOM = b"\xef\xbb\xbf"


class DataFile:
    """A data file that is open for reading; what goes wrong is one line that names it."""

    def __init__(self, path: Path) -> None:
        self.name = name_of(path)
        self._is_own = path != STANDARD_INPUT  # standard input stays open: it belongs to the process
        self._raw: IO[bytes] = open_regular(path, DataError) if self._is_own else take_input()
        self._file = self._raw
        self._limit: int | None = None
        if path.suffix.lower() == ".gz":
            packed = self._raw.seek(0, io.SEEK_END)
            self._raw.seek(0)
            self._file = gzip.GzipFile(fileobj=self._raw, mode="rb")  # type: ignore[assignment]
            self._limit = max(MAX_UNPACKED, MAX_RATIO * packed)

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_own:
            self._raw.close()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""
        return self._take(self._file.read, size)

    def readline(self, size: int) -> bytes:
        """A line with its end, or its first `size` bytes."""
        return self._take(self._file.readline, size)

    def rewind(self) -> None:
        """Go on from the start."""
        self._file.seek(0)

    def _take(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            data = read(size)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self.name}: expected a readable file, got: {error}") from None
        if self._limit is not None and self._file.tell() > self._limit:
            raise DataError(
                f"{self.name}: expected gzip that unpacks to at most {MAX_RATIO} times its size, got more than "
                f"{self._limit:,} bytes; unpack it first if it is meant (gunzip)"
            )
        return data


def text_blocks(path: Path) -> Iterator[str]:
    """Yield a UTF-8 text block by block; every line ends in a line feed, whatever it ended in, and a byte order mark is gone.

    Raises
    ------
    DataError
        The file cannot be read, or is not UTF-8.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    with DataFile(path) as file:
        block = file.read(READ_BYTES).removeprefix(BOM)
        while block:
            yield decode(block, name_of(path), decoder.decode)
            block = file.read(READ_BYTES)
        yield decode(b"", name_of(path), lambda data: decoder.decode(data, final=True))


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text with their line feeds."""
    rest = ""
    for block in text_blocks(path):
        *lines, rest = (rest + block).split("\n")
        if len(rest) > MAX_LINE:
            raise DataError(f"{name_of(path)}: expected lines of at most {MAX_LINE >> 20} Mi characters, got a longer one")
        yield from (line + "\n" for line in lines)
    if rest:
        yield rest


def decode(data: bytes, where: str, decoder: Callable[[bytes], str] = bytes.decode) -> str:
    """Bytes as UTF-8 text; `where` begins the message where they are none."""
    try:
        return decoder(data)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(f"{where}: expected UTF-8 text, got byte 0x{byte:02x}; save the file as UTF-8") from None
