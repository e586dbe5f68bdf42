"""Reading GGUF files. Every count, length and offset is checked against the size of the file before anything is allocated
for it, so a damaged or hostile file gives one `CheckpointError`.

Source: the GGUF specification (docs/gguf.md of ggml).
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import GGMLTensor
from ..errors import CheckpointError, shorten
from ..files.os_errors import reason
from ..files.regular_file import open_regular
from .format import BLOCK_TYPES, DEFAULT_ALIGNMENT, DENSE, MAGIC, NUMBERS, TENSOR_TYPES, VERSIONS, Kind, TensorType, Value

MAX_STRINGS = 4_000_000  # of all arrays of a file together; the largest vocabularies have 0.3 million tokens
MAX_NAME_BYTES = 256
_LEGACY = {b"ggml": "GGML", b"tjgg": "GGJT", b"lmgg": "GGML", b"algg": "GGLA", b"fmgg": "GGMF"}


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file that begins as GGUF files do, or anything but a folder that is named like one."""
    if Path(path).suffix == ".gguf" and not os.path.isdir(path):
        return os.path.lexists(path)  # a pipe, a broken link or an unreadable file, too: what reads it says so
    try:
        with open_regular(path, CheckpointError) as file:
            return file.read(4) == MAGIC
    except (CheckpointError, OSError):
        return False


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies. shape: slowest dimension first, as NumPy has it; bytes counted from the start of the file."""

    type: TensorType
    shape: tuple[int, ...]
    start: int
    end: int


class _Cursor:
    """Takes bytes from a file that may end anywhere."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path, self.position = data, path, 0
        self.strings = 0

    def fail(self, expected: str, got: object) -> CheckpointError:
        text = f"{self.path}: expected {expected}, got {got}"
        return CheckpointError(f"{text} (byte {self.position}); the file is damaged, download it again")

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, count: int, what: str) -> memoryview:
        if count > self.left:
            raise self.fail(f"{count} bytes for {what}", f"{self.left} to the end of the file")
        part = self.data[self.position : self.position + count]
        self.position += count
        return part

    def number(self, kind: Kind, what: str) -> Any:
        dtype = NUMBERS[kind]
        value = np.frombuffer(self.take(dtype.itemsize, what), dtype if kind is not Kind.BOOL else np.uint8)[0]
        if kind is Kind.BOOL and value > 1:
            raise self.fail(f"0 or 1 for {what}", value)
        return bool(value) if kind is Kind.BOOL else value.item()

    def count(self, what: str, smallest: int) -> int:
        """A number of things that take at least `smallest` bytes each in the rest of the file."""
        value = int(self.number(Kind.UINT64, what))
        if value > self.left // smallest:
            raise self.fail(f"at most {self.left // smallest} {what} in the rest of the file", value)
        return value

    def string(self, what: str, limit: int | None = None) -> str:
        length = self.count(f"bytes of {what}", 1)
        if limit is not None and length > limit:
            raise self.fail(f"{what} of at most {limit} bytes", length)
        try:
            return str(self.take(length, what), "utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"UTF-8 text for {what}", error) from None

    def kind(self, what: str) -> Kind:
        value = self.number(Kind.UINT32, what)
        if value not in Kind._value2member_map_:
            raise self.fail(f"a kind from 0 to {max(Kind)} for {what}", value)
        return Kind(value)

    def value(self, kind: Kind, what: str) -> Value:
        if kind is Kind.STRING:
            return Value(kind, self.string(what))
        if kind is not Kind.ARRAY:
            return Value(kind, self.number(kind, what))
        item = self.kind(f"the items of {what}")
        if item is Kind.ARRAY:
            raise self.fail(f"an array of numbers or strings for {what}", "an array of arrays")
        if item is Kind.STRING:
            return Value(kind, self._strings(what), item)
        dtype = NUMBERS[item]
        count = self.count(f"items of {what}", dtype.itemsize)
        raw = self.take(count * dtype.itemsize, what)
        if item is Kind.BOOL and count and np.frombuffer(raw, np.uint8).max() > 1:
            raise self.fail(f"0 and 1 in {what}", "other bytes")
        return Value(kind, np.frombuffer(raw, dtype).copy(), item)

    def _strings(self, what: str) -> list[str]:
        count = self.count(f"items of {what}", 8)
        self.strings += count
        if self.strings > MAX_STRINGS:
            raise self.fail(f"at most {MAX_STRINGS} strings in arrays", self.strings)
        return [self.string(what) for _ in range(count)]


class GGUFFile:
    """A memory-mapped GGUF file.

    Attributes
    ----------
    values : dict
        Metadata by key, with kinds.
    tensors : dict
        `GGUFTensor` by name, in the order of the file.

    Raises
    ------
    CheckpointError
        The file is truncated or damaged, or of a version that is not read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with open_regular(self.path, CheckpointError) as file:
                size = os.fstat(file.fileno()).st_size
                if size < 24:
                    raise CheckpointError(f"{self.path}: expected a GGUF file of at least 24 bytes, got {size} bytes")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(f"{self.path}: expected a readable file, got: {reason(error)}") from error
        self._view = memoryview(self._map)
        try:
            self._parse()
        except BaseException:
            self.close()
            raise

    def get(self, key: str, default: Any = None) -> Any:
        """Return a metadata value: a number, bool or string, a list of strings, or an array of numbers."""
        return self.values[key].data if key in self.values else default

    def read(self, name: str) -> NDArray[Any] | GGMLTensor:
        """Return a tensor without a copy: an array, or a `GGMLTensor` for the block formats and float16 matrices.

        Raises
        ------
        CheckpointError
            There is none of that name, it has a type that is not read, or a block's scale is not finite.
        """
        info = self.info(name)
        raw = self._view[info.start : info.end]
        dtype = DENSE.get(info.type.name)
        if dtype is not None and (info.type.name != "F16" or len(info.shape) == 1):
            return np.frombuffer(raw, dtype).reshape(info.shape)
        if info.type.name not in BLOCK_TYPES:
            raise CheckpointError(
                f"{self.path}: {name}: expected one of F32, {', '.join(BLOCK_TYPES)}, got {info.type.name}; use a file with "
                "one of these types"
            )
        rows = math.prod(info.shape[:-1])
        try:
            return GGMLTensor.from_blocks(raw, (rows, info.shape[-1]), info.type.name)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {name}: {error}; the file is damaged, download it again") from None

    def info(self, name: str) -> GGUFTensor:
        """Return where a tensor lies."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: expected a tensor {name!r}, got {shorten(self.tensors)}")
        return self.tensors[name]

    def release(self, name: str) -> None:
        """Give the pages of a tensor back to the system; views of it stay valid and are read again when used."""
        info = self.info(name)
        start, end = info.start // mmap.PAGESIZE * mmap.PAGESIZE, -(-info.end // mmap.PAGESIZE) * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, min(end, len(self._map)) - start)

    def close(self) -> None:
        """Drop the mapping; views that are still alive keep it."""
        with suppress(BufferError):
            self._view.release()
            self._map.close()

    # -- the header ---------------------------------------------------------------------------------------------------

    def _parse(self) -> None:
        cursor = _Cursor(self._view, self.path)
        _check_version(cursor)
        n_tensors = cursor.count("tensors", 8 + 1 + 4 + 8 + 4 + 8)
        n_values = cursor.count("metadata entries", 8 + 1 + 4 + 1)
        self.values: dict[str, Value] = {}
        for _ in range(n_values):
            key = cursor.string("a metadata key", 65535)
            if not key.isprintable():
                raise cursor.fail("metadata keys of printable characters", repr(key)[:80])
            if key in self.values:
                raise cursor.fail("each metadata key once", repr(key)[:80])
            self.values[key] = cursor.value(cursor.kind(f"metadata {key!r}"[:80]), f"metadata {key!r}"[:80])
        self.alignment = self._read_alignment()
        found = dict(_tensor_infos(cursor, n_tensors))
        origin = -(-cursor.position // self.alignment) * self.alignment
        self.tensors = {name: self._place(name, entry, origin) for name, entry in found.items()}
        self._refuse_overlaps(cursor)

    def _read_alignment(self) -> int:
        value = self.values.get("general.alignment", Value(Kind.UINT32, DEFAULT_ALIGNMENT)).data
        if type(value) is not int or not 8 <= value <= 1 << 20 or value & (value - 1):
            raise CheckpointError(f"{self.path}: general.alignment: expected a power of two of at least 8, got {value!r}")
        return value

    def _place(self, name: str, entry: tuple[TensorType, tuple[int, ...], int], origin: int) -> GGUFTensor:
        kind, shape, offset = entry
        start = origin + offset
        end = start + kind.nbytes(shape)
        if offset % self.alignment:
            raise CheckpointError(
                f"{self.path}: {name}: expected an offset that is a multiple of {self.alignment}, got {offset}; "
                "the file is damaged, download it again"
            )
        if end > len(self._view):
            raise CheckpointError(
                f"{self.path}: {name}: expected {end} bytes or more (the end of this tensor), got {len(self._view)}; "
                "the file is truncated, download it again"
            )
        return GGUFTensor(kind, shape, start, end)

    def _refuse_overlaps(self, cursor: _Cursor) -> None:
        end, before = cursor.position, "the header"
        for name, info in sorted(self.tensors.items(), key=lambda item: item[1].start):
            if info.start < end:
                raise CheckpointError(
                    f"{self.path}: {name}: expected data from byte {end} on (the end of {before}), got {info.start}; "
                    "tensors overlap, the file is damaged"
                )
            end, before = info.end, name


def _check_version(cursor: _Cursor) -> None:
    magic = bytes(cursor.take(4, "the magic number"))
    if magic != MAGIC:
        if magic in _LEGACY:
            raise CheckpointError(
                f"{cursor.path}: expected a GGUF file, got the older {_LEGACY[magic]} format; download a GGUF of this model"
            )
        raise CheckpointError(f"{cursor.path}: expected a file that begins with b'GGUF', got {magic!r}; is this a GGUF file?")
    version = cursor.number(Kind.UINT32, "the version")
    if version in VERSIONS:
        return
    if version & 0xFFFF == 0 and version >> 24 in VERSIONS:
        raise CheckpointError(
            f"{cursor.path}: expected a little-endian GGUF file, got a big-endian one; use a little-endian file"
        )
    raise CheckpointError(f"{cursor.path}: expected GGUF version 2 or 3, got {version}; use a newer file of this model")


def _tensor_infos(cursor: _Cursor, count: int) -> Iterator[tuple[str, tuple[TensorType, tuple[int, ...], int]]]:
    seen = set()
    for _ in range(count):
        name = cursor.string("a tensor name", MAX_NAME_BYTES)
        if not name.isprintable():
            raise cursor.fail("tensor names of printable characters", repr(name)[:80])
        if name in seen:
            raise cursor.fail("each tensor once", repr(name))
        seen.add(name)
        n_dims = cursor.number(Kind.UINT32, f"the dimensions of {name}")
        if not 1 <= n_dims <= 4:
            raise cursor.fail(f"1 to 4 dimensions of {name}", n_dims)
        extents = [cursor.number(Kind.UINT64, f"the shape of {name}") for _ in range(n_dims)]
        shape = tuple(int(extent) for extent in reversed(extents))
        if min(shape) < 1 or math.prod(shape) >= 1 << 62:
            raise cursor.fail(f"sizes of at least 1 whose product is below 2^62 for {name}", shape)
        number = cursor.number(Kind.UINT32, f"the type of {name}")
        if number not in TENSOR_TYPES:
            raise cursor.fail(f"a tensor type that is known for {name}", f"number {number}")
        kind = TENSOR_TYPES[number]
        if shape[-1] % kind.block:
            raise cursor.fail(f"rows of {name} with a multiple of {kind.block} weights ({kind.name})", shape[-1])
        yield name, (kind, shape, int(cursor.number(Kind.UINT64, f"the offset of {name}")))
