"""Writing safetensors files, one tensor at a time, in shards where a file would become too large."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from .safetensors_file import DTYPE_NAMES
from .written import INDEX_FILE, MODEL_FILE

MAX_SHARD_BYTES = 5_000_000_000


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
        del array  # before the next one is made


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
        total = sum(entry.nbytes for entry in entries)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
