"""Writing GGUF files, one tensor in memory at a time.

Source: the GGUF specification (docs/gguf.md of ggml).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import GGMLTensor
from ..errors import CheckpointError
from .format import DEFAULT_ALIGNMENT, DENSE, MAGIC, NUMBERS, TYPES_BY_NAME, VERSIONS, Kind, Value

MAX_NAME = 63  # bytes that ggml keeps of a tensor's name


@dataclass(frozen=True)
class GGUFEntry:
    """A tensor to be written: `load` is called once, when its turn has come. shape: slowest dimension first."""

    name: str
    type: str
    shape: tuple[int, ...]
    load: Callable[[], NDArray[Any] | GGMLTensor]

    @property
    def nbytes(self) -> int:
        """Bytes in the file, padding aside."""
        return TYPES_BY_NAME[self.type].nbytes(self.shape)

    def data(self) -> memoryview:
        """The tensor's bytes."""
        value = self.load()
        if isinstance(value, GGMLTensor):
            fits = value.type == self.type and len(value.blocks) == self.nbytes
            raw = memoryview(value)  # type: ignore[arg-type]
        else:
            fits = value.dtype == DENSE.get(self.type) and value.shape == self.shape
            raw = memoryview(np.ascontiguousarray(value).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        if not fits:
            raise CheckpointError(f"{self.name}: expected {self.type} {self.shape}, got {value!r}"[:300])
        return raw


def text(value: str) -> Value:
    """A string as metadata."""
    return Value(Kind.STRING, value)


def uint32(value: int) -> Value:
    """A whole number as metadata."""
    return Value(Kind.UINT32, value)


def float32(value: float) -> Value:
    """A real number as metadata."""
    return Value(Kind.FLOAT32, value)


def boolean(value: bool) -> Value:
    """Yes or no as metadata."""
    return Value(Kind.BOOL, value)


def array(values: Sequence[Any] | NDArray[Any], item: Kind) -> Value:
    """A list as metadata."""
    return Value(Kind.ARRAY, values, item)


def _string(value: str) -> bytes:
    raw = value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _pack(kind: Kind, data: Any, item: Kind | None) -> bytes:
    if kind is Kind.STRING:
        return _string(data)
    if kind is not Kind.ARRAY:
        return np.asarray(data, NUMBERS[kind]).tobytes()
    assert item is not None
    head = struct.pack("<IQ", item, len(data))
    if item is Kind.STRING:
        return head + b"".join(map(_string, data))
    return head + np.asarray(data, NUMBERS[item]).tobytes()


def write_gguf(write: Callable[[Any], Any], values: Mapping[str, Value], tensors: Sequence[GGUFEntry]) -> None:
    """Stream a file through `write`.

    Raises
    ------
    CheckpointError
        A tensor's name is too long for ggml, or a tensor is not what its entry says.
    """
    alignment = int(values["general.alignment"].data) if "general.alignment" in values else DEFAULT_ALIGNMENT
    parts = [MAGIC, struct.pack("<IQQ", max(VERSIONS), len(tensors), len(values))]
    for key, value in values.items():
        parts += [_string(key), struct.pack("<I", value.kind), _pack(value.kind, value.data, value.item)]
    offset = 0
    for entry in tensors:
        if len(entry.name.encode("utf-8")) > MAX_NAME:
            raise CheckpointError(f"{entry.name}: expected a tensor name of at most {MAX_NAME} bytes, got a longer one")
        shape = entry.shape[::-1]
        parts.append(_string(entry.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        parts.append(struct.pack("<IQ", TYPES_BY_NAME[entry.type].number, offset))
        offset += -(-entry.nbytes // alignment) * alignment
    header = b"".join(parts)
    write(header + bytes(-len(header) % alignment))
    for entry in tensors:
        write(entry.data())
        write(bytes(-entry.nbytes % alignment))
