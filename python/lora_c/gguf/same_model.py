"""What a file will say is read again before it is written: what the format has no key for must not become another model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import GGMLTensor
from ..errors import CheckpointError
from ..families.architectures import Architecture, architecture_of
from .config import config_of
from .format import TYPES_BY_NAME, Value
from .reader import GGUFTensor
from .writer import GGUFEntry

_CLOSE = 1e-5  # numbers are stored in float32
_LOOSE = {"embedding_scale": 1e-2}  # rounded to the type of the embedding, which every program does its own way


class PlannedFile:
    """A file that is not written yet, as `config_of` reads one."""

    def __init__(self, values: Mapping[str, Value], entries: Iterable[GGUFEntry]) -> None:
        self.path = Path("GGUF")
        self.values = values
        self._entries = {entry.name: entry for entry in entries}
        self.tensors = {n: GGUFTensor(TYPES_BY_NAME[e.type], e.shape, 0, e.nbytes) for n, e in self._entries.items()}

    def get(self, key: str, default: Any = None) -> Any:
        """As `GGUFFile.get`."""
        return self.values[key].data if key in self.values else default

    def info(self, name: str) -> GGUFTensor:
        """As `GGUFFile.info`."""
        return self.tensors[name]

    def read(self, name: str) -> NDArray[Any] | GGMLTensor:
        """As `GGUFFile.read`."""
        return self._entries[name].load()


def check_same_model(values: Mapping[str, Value], entries: Iterable[GGUFEntry], architecture: Architecture) -> None:
    """Refuse a file that would be read as another model.

    Raises
    ------
    CheckpointError
        Names what would be different.
    """
    config, _ = config_of(PlannedFile(values, entries))
    again = architecture_of(config).decoder_kwargs
    for name, value in architecture.decoder_kwargs.items():
        if not _is_same(value, again.get(name), _LOOSE.get(name, _CLOSE)):
            got, given = str(again.get(name))[:40], str(value)[:40]
            raise CheckpointError(
                f"GGUF: {name}: expected {given}, got {got} from the keys that the format has for this architecture; save the "
                "model as a folder instead"
            )


def _is_same(value: Any, other: Any, tolerance: float) -> bool:
    if isinstance(value, (str, bool)) or value is None or other is None:
        return bool(value == other)
    one, two = np.asarray(value, np.float64), np.asarray(other, np.float64)
    if one.shape != two.shape and one.size > 1 and two.size > 1:
        return False
    return bool(np.allclose(*np.broadcast_arrays(one, two), rtol=tolerance, atol=0))
