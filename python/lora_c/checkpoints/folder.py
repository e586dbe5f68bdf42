"""A Hugging Face model folder: config.json, and its safetensors files as one set of tensors. Pickles are never opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import CheckpointError
from ..families.multimodal import text_config
from ..files.atomic import recover_folder
from ..files.json_files import read_json_object
from .read_ahead import Extent
from .safetensors_file import SafetensorsFile, TensorInfo
from .written import INDEX_FILE, MODEL_FILE


class Checkpoint:
    """A Hugging Face model folder: config.json and one or several safetensors files.

    Parameters
    ----------
    path : path
        Folder with `model.safetensors`, or `model.safetensors.index.json` and its shards.

    Attributes
    ----------
    config : dict
        config.json; of a model of texts and images the part for texts.
    index : dict
        Tensor to shard, as the index has it. It may name what no shard holds: only tensors that are needed must be there.
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

    def _shards(self) -> list[Path]:
        self.index: dict[str, str] = {}
        single, index = self.path / MODEL_FILE, self.path / INDEX_FILE
        if os.path.lexists(single):
            return [single]
        if os.path.lexists(index):
            self.index = _weight_map(index)
            present = {entry.name for entry in os.scandir(self.path)}
            shards = shards_of(index)
            absent = next((shard for shard in shards if shard not in present), None)
            if absent is not None:
                raise CheckpointError(f"{self.path / absent}: expected this shard (named in the index), got nothing there")
            return [self.path / shard for shard in shards]
        pickles = sorted(self.path.glob("*.bin")) + sorted(self.path.glob("*.pt*"))
        if pickles:
            raise CheckpointError(
                f"{pickles[0]}: expected safetensors, got a pickle, which can run code when opened; convert it with "
                "transformers' save_pretrained(..., safe_serialization=True)"
            )
        raise CheckpointError(f"{self.path}: expected model.safetensors or model.safetensors.index.json, got neither")

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


def shards_of(index: Path) -> list[str]:
    """The names of the files that an index names."""
    return sorted(set(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    table = read_json_object(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(v, str) for v in table.values()):
        raise CheckpointError(f"{index}: expected weight_map to map tensors to files, got {str(table)[:60]}")
    for shard in set(table.values()):
        if Path(shard).name != shard or shard in (".", ".."):
            raise CheckpointError(f"{index}: expected plain file names in weight_map, got {shard!r}")
    return table
