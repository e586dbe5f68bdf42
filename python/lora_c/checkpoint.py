"""Reading and writing safetensors files and Hugging Face folders, one tensor at a time.

A header is checked against the size of its file before anything in it is believed. Pickles are never opened.
Source: the safetensors format, https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .errors import CheckpointError, shorten
from .files import recover_folder
from .multimodal import text_config
from .os_errors import reason
from .read_ahead import Extent

MAX_HEADER_BYTES = 100_000_000
MAX_SHARD_BYTES = 5_000_000_000
MODEL_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
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
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                self.metadata, self.tensors = _read_header(file.read, size, self.path)
                self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(f"{self.path}: expected a readable file, got: {error.strerror or error}") from error

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
        header = json.loads(read(length).decode("utf-8"), object_pairs_hook=_unique)
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name that occurs twice")
    return result


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


class Checkpoint:
    """A Hugging Face model folder: config.json and one or several safetensors files.

    Parameters
    ----------
    path : path
        Folder with `model.safetensors`, or `model.safetensors.index.json` and its shards.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = recover_folder(path)
        if not os.path.isdir(self.path):
            kind = "a file" if os.path.exists(self.path) else "nothing there"
            raise CheckpointError(f"{path}: expected a model folder with config.json and *.safetensors, got {kind}")
        self.config = text_config(read_json_object(self.path / "config.json", "a model folder has one; check the path"))
        self._files: dict[str, SafetensorsFile] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for file in [SafetensorsFile(name) for name in self._shards()]:
            for name, info in file.tensors.items():
                if name in self._files:
                    raise CheckpointError(f"{file.path}: expected each tensor in one file, got {name!r} a second time")
                self._files[name], self.tensors[name] = file, info
        self._check_index()

    def _shards(self) -> list[Path]:
        self._index: dict[str, str] = {}
        single, index = self.path / MODEL_FILE, self.path / INDEX_FILE
        if single.exists():
            return [single]
        if index.exists():
            table = read_json_object(index).get("weight_map")
            if not isinstance(table, dict) or not table or not all(isinstance(v, str) for v in table.values()):
                raise CheckpointError(f"{index}: expected weight_map to map tensors to files, got {str(table)[:60]}")
            present = {entry.name for entry in os.scandir(self.path) if entry.is_file()}
            for shard in sorted(set(table.values())):
                if Path(shard).name != shard or shard in (".", ".."):
                    raise CheckpointError(f"{index}: expected plain file names in weight_map, got {shard!r}")
                if shard not in present:
                    raise CheckpointError(f"{self.path / shard}: expected this shard (named in the index), got nothing there")
            self._index = table
            return [self.path / shard for shard in sorted(set(table.values()))]
        pickles = sorted(self.path.glob("*.bin")) + sorted(self.path.glob("*.pt*"))
        if pickles:
            raise CheckpointError(
                f"{pickles[0]}: expected safetensors, got a pickle, which can run code when opened; convert it with "
                "transformers' save_pretrained(..., safe_serialization=True)"
            )
        raise CheckpointError(f"{self.path}: expected model.safetensors or model.safetensors.index.json, got neither")

    def _check_index(self) -> None:
        for name, shard in self._index.items():
            if name not in self._files or self._files[name].path.name != shard:
                raise CheckpointError(
                    f"{self.path / shard}: expected tensor {name!r} (named in the index), got a file without it"
                )

    def read(self, name: str) -> NDArray[Any]:
        """Return a read-only view of a tensor."""
        if name not in self._files:
            raise CheckpointError(f"{self.path}: expected a tensor {name!r}, got none of that name")
        return self._files[name].read(name)

    def extent(self, name: str) -> Extent:
        """Where the bytes of a tensor lie."""
        info = self.tensors[name]
        return Extent(self._files[name].path, info.start, info.end)

    def release(self, name: str) -> None:
        """Give the memory of a tensor back to the system after its last use."""
        self._files[name].release(name)

    def close(self) -> None:
        """Close every file."""
        for file in set(self._files.values()):
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_json_object(path: Path, hint: str = "") -> dict[str, Any]:
    """Read a JSON object from a file; every failure is one clear `CheckpointError`."""
    way_out = f"; {hint}" if hint else ""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: expected this file, got nothing there{way_out}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a JSON file, got: {reason(error)}{way_out}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}{way_out}")
    return value


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


@dataclass(frozen=True)
class TensorEntry:
    """A tensor to be written: `load` is called once, when its turn has come."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    load: Callable[[], NDArray[Any]]

    @classmethod
    def of(cls, name: str, array: NDArray[Any]) -> TensorEntry:
        """An array that exists already."""
        return cls(name, array.dtype, array.shape, lambda: array)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        count = self.dtype.itemsize
        for extent in self.shape:
            count *= extent
        return count


def write_safetensors(
    write: Callable[[Any], Any], entries: Iterable[TensorEntry], metadata: Mapping[str, str] | None = None
) -> None:
    """Stream tensors through `write`; one of them is in memory at a time.

    Wide types come first, as the reference writer does, so that every tensor is aligned to its own size.
    """
    ordered = sorted(entries, key=lambda e: (-e.dtype.itemsize, e.name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for entry in ordered:
        header[entry.name] = {
            "dtype": DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [position, position + entry.nbytes],
        }
        position += entry.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    write(struct.pack("<Q", len(text)) + text)
    for entry in ordered:
        array = np.ascontiguousarray(entry.load())
        if array.dtype != entry.dtype or array.shape != entry.shape:
            raise CheckpointError(f"{entry.name}: expected {entry.dtype} {entry.shape}, got {array.dtype} {array.shape}")
        if array.size:
            write(memoryview(array.reshape(-1).view(np.uint8)))


def plan_shards(entries: Sequence[TensorEntry], limit: int = MAX_SHARD_BYTES) -> Iterator[tuple[str, list[TensorEntry]]]:
    """Yield file names and the tensors of each: one `model.safetensors`, or numbered shards of at most `limit` bytes."""
    shards: list[list[TensorEntry]] = [[]]
    filled = 0
    for entry in entries:
        if shards[-1] and filled + entry.nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += entry.nbytes
    for i, shard in enumerate(shards, 1):
        yield (MODEL_FILE if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"), shard


def write_model_files(folder: Path, entries: Sequence[TensorEntry], shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write the safetensors files of a model, and the index when there are several."""
    shards = list(plan_shards(entries, shard_bytes))
    for file_name, shard in shards:
        with open(folder / file_name, "wb") as file:
            write_safetensors(file.write, shard, {"format": "pt"})
    if len(shards) > 1:
        weight_map = {entry.name: file_name for file_name, shard in shards for entry in shard}
        index = {
            "metadata": {"total_size": sum(entry.nbytes for entry in entries)}, "weight_map": dict(sorted(weight_map.items())),
        }  # fmt: skip
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
