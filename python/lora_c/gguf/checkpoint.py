"""A GGUF model as a checkpoint: the names, shapes and order of a model folder, read where the file is mapped."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core import GGMLTensor
from ..checkpoints.read_ahead import Extent
from ..checkpoints.safetensors_file import TensorInfo
from ..errors import CheckpointError
from ..text.tokenizers_library import library_errors
from .config import config_of
from .reader import GGUFFile, is_gguf

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
# Tensors that the configuration already stands for.
_ROPE_TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def has_blocks(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a GGUF file with quantized matrices."""
    if not is_gguf(path):
        return False
    file = GGUFFile(path)
    try:
        return any(info.type.block > 1 for info in file.tensors.values())
    finally:
        file.close()


class GGUFCheckpoint:
    """What `Checkpoint` is for folders, for a GGUF file (or the first of its shards).

    Attributes
    ----------
    config : dict
        What config.json would be.
    tensors : dict
        The folder's name of each tensor to its place; dtype is the GGUF type.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.file = GGUFFile(self.path)
        self._files = [self.file, *self._further_shards()]
        self.config, self.family = config_of(self.file)
        self.tensors: dict[str, TensorInfo] = {}
        self._places: dict[str, tuple[GGUFFile, str]] = {}
        for file in self._files:
            for name, info in file.tensors.items():
                if name in _ROPE_TABLES:
                    continue
                folder_name = self.family.to_folder(name) or name  # an unknown one is refused with the others, by name
                if folder_name in self._places:
                    raise CheckpointError(f"{file.path}: expected each tensor in one file, got {name!r} a second time")
                self._places[folder_name] = file, name
                self.tensors[folder_name] = TensorInfo(info.type.name, info.shape, info.start, info.end)

    def _further_shards(self) -> list[GGUFFile]:
        count = self.file.get("split.count", 1)
        if count in (0, 1):
            return []
        name = _SHARD.fullmatch(self.path.name)
        if name is None or int(name["number"]) != 1 or int(name["count"]) != count:
            raise CheckpointError(
                f"{self.path}: expected the first of {count} files, named *-00001-of-{count:05d}.gguf; give that one"
            )
        paths = [self.path.with_name(f"{name['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(2, count + 1)]
        return [GGUFFile(path) for path in paths]

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer and chat template of the file; None where it has none."""
        from .tokenizer import tokenizer_of

        with library_errors(CheckpointError, f"{self.file.path}: expected lists of tokens that make a tokenizer"):
            return tokenizer_of(self.file)

    def read(self, name: str) -> NDArray[Any] | GGMLTensor:
        """Return a tensor in the order of a model folder: a view of the file, or a copy where its rows lie otherwise."""
        if name not in self._places:
            raise CheckpointError(f"{self.path}: expected a tensor {name!r}, got none of that name")
        file, file_name = self._places[name]
        value = file.read(file_name)
        heads_key = self.family.heads_key(name)
        if heads_key is not None:
            value = _split_halves(value, self.config[heads_key], f"{self.path}: {file_name}")
        offset = self.family.offset(name)
        if offset:
            array = value if isinstance(value, np.ndarray) else value.dequantize().reshape(file.info(file_name).shape)
            return np.asarray(array.astype(np.float32) - np.float32(offset))
        return value

    def extent(self, name: str) -> Extent:
        """Where the bytes of a tensor lie."""
        file, file_name = self._places[name]
        info = file.info(file_name)
        return Extent(file.path, info.start, info.end)

    def release(self, name: str) -> None:
        """Give the memory of a tensor back to the system after its last use."""
        file, file_name = self._places[name]
        file.release(file_name)

    def close(self) -> None:
        """Drop the mappings; weights that were read keep theirs."""
        for file in self._files:
            file.close()

    def __enter__(self) -> GGUFCheckpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _split_halves(value: NDArray[Any] | GGMLTensor, heads: Any, where: str) -> NDArray[Any] | GGMLTensor:
    """Rows of q or k from interleaved pairs to halves. Blocks never cross rows, so theirs move as they are."""
    rows = value.shape[0]
    if type(heads) is not int or heads < 1 or rows % (2 * heads):
        raise CheckpointError(f"{where}: expected an even number of rows for each of {heads} heads, got {rows} rows")
    if isinstance(value, GGMLTensor):
        moved = deinterleave(value.blocks.reshape(rows, -1), heads)
        return GGMLTensor.from_blocks(moved.reshape(-1), value.shape, value.type)
    return deinterleave(value, heads)


def deinterleave(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows (2i, 2i + 1) of each head become rows (i, i + half): GGUF's order to the folder's.

    Shapes
    ------
    (heads * head_dim, ...), the same back.
    """
    return np.ascontiguousarray(rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2)).reshape(rows.shape)


def interleave(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """The inverse of `deinterleave`."""
    return np.ascontiguousarray(rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2)).reshape(rows.shape)
