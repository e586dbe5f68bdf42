"""Reading safetensors files: the header is checked against the size of its file before anything in it is believed.

Source: the safetensors format, https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, shorten
from ..files.json_files import unique_names
from ..files.os_errors import reason
from ..files.regular_file import open_regular

MAX_HEADER_BYTES = 100_000_000
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "I64": np.dtype(np.int64), "U64": np.dtype(np.uint64),
    "I32": np.dtype(np.int32), "U32": np.dtype(np.uint32), "I16": np.dtype(np.int16), "U16": np.dtype(np.uint16),
    "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: dtype by its safetensors name, byte range counted from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """A memory-mapped safetensors file with a checked header.

    Raises
    ------
    CheckpointError
        The file is truncated, or its header does not describe exactly the bytes that follow it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with open_regular(self.path, CheckpointError) as file:
            try:
                size = os.fstat(file.fileno()).st_size
                self.metadata, self.tensors = _read_header(file.read, size, self.path)
                self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise CheckpointError(f"{self.path}: expected a readable file, got: {reason(error)}") from None

    def read(self, name: str) -> NDArray[Any]:
        """Return a read-only view of the tensor (a copy where the file leaves it misaligned)."""
        info = self._info(name)
        if self._map is None:
            raise CheckpointError(f"{self.path}: expected an open file, got one that was closed")
        dtype = DTYPES[info.dtype]
        count = (info.end - info.start) // dtype.itemsize
        if count == 0:
            return np.zeros(info.shape, dtype)
        if info.start % dtype.itemsize:
            return np.frombuffer(self._map[info.start : info.end], dtype).reshape(info.shape)
        return np.frombuffer(self._map, dtype, count, info.start).reshape(info.shape)

    def release(self, name: str) -> None:
        """Give the pages of a tensor back to the system; views of it stay valid and are read again when used."""
        info = self._info(name)
        page = mmap.PAGESIZE
        start, end = info.start // page * page, -(-info.end // page) * page
        if self._map is not None and end > start and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, min(end, len(self._map)) - start)

    def close(self) -> None:
        """Drop the mapping; views that are still alive keep it."""
        if self._map is not None:
            with suppress(BufferError):  # a view is alive: the mapping goes with it
                self._map.close()
            self._map = None

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: expected a tensor {name!r}, got {shorten(sorted(self.tensors))}")
        return self.tensors[name]


def _read_header(read: Callable[[int], bytes], size: int, path: Path) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    def fail(expected: str, got: object) -> CheckpointError:
        return CheckpointError(f"{path}: expected {expected}, got {got}; the file is damaged, download or save it again")

    if size < 8:
        raise fail("a safetensors file of at least 8 bytes", f"{size} bytes")
    (length,) = struct.unpack("<Q", read(8))
    if length > MAX_HEADER_BYTES:
        raise fail(f"a header of at most {MAX_HEADER_BYTES} bytes", f"{length}")
    if 8 + length > size:
        raise fail(f"{8 + length} bytes or more (the header's length)", f"{size}")
    try:
        header = json.loads(read(length).decode("utf-8"), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise fail("a JSON header", error or "nesting without end") from None
    if not isinstance(header, dict):
        raise fail("a JSON object as header", type(header).__name__)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # MLX writes null
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise fail("__metadata__ to map names to text", repr(metadata)[:60])
    tensors = {name: _tensor_info(name, entry, 8 + length, fail) for name, entry in header.items()}
    position = 8 + length
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != position:
            raise fail(f"tensor {name!r} to start at byte {position}", f"byte {info.start} (a gap or an overlap)")
        position = info.end
    if position != size:
        raise fail(f"{position} bytes (the end of the last tensor)", f"{size}")
    return metadata, tensors


def _tensor_info(name: str, entry: Any, origin: int, fail: Callable[[str, object], CheckpointError]) -> TensorInfo:
    def whole(values: Any) -> bool:
        return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise fail(f"tensor {name!r} to have dtype, shape and data_offsets", repr(entry)[:60])
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise fail(f"tensor {name!r} to have one of the dtypes {', '.join(DTYPES)}", repr(dtype)[:60])
    if not whole(shape) or len(shape) > 8:
        raise fail(f"tensor {name!r} to have a shape of at most 8 whole numbers", repr(shape)[:60])
    if not whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fail(f"tensor {name!r} to have two rising data_offsets", repr(offsets)[:60])
    expected = DTYPES[dtype].itemsize
    for extent in shape:  # Python integers: a product of huge extents cannot wrap around
        expected *= extent
    if offsets[1] - offsets[0] != expected:
        raise fail(f"tensor {name!r} {dtype} {shape} to have {expected} bytes", offsets[1] - offsets[0])
    return TensorInfo(dtype, tuple(shape), origin + offsets[0], origin + offsets[1])


def find_non_finite(array: NDArray[Any]) -> tuple[tuple[int, ...], float] | None:
    """Return the index and value of the first NaN or infinity, or None; no temporary is larger than 1 MB."""
    flat = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, flat.size, 1 << 18):
        part = flat[start : start + (1 << 18)]
        if part.dtype == ml_dtypes.bfloat16:
            bad = (part.view(np.uint16) & 0x7F80) == 0x7F80
        else:
            bad = ~np.isfinite(part)
        if bad.any():
            first = int(bad.argmax())
            where = np.unravel_index(start + first, array.shape)
            return tuple(int(i) for i in where), float(part[first])
    return None
