"""Tensors of adapter files as float32."""

from __future__ import annotations

import numpy as np

from ..checkpoints.safetensors_file import SafetensorsFile, find_non_finite
from ..errors import AdapterError
from .data import F32


def read_floats(file: SafetensorsFile, key: str) -> F32:
    """Return a tensor as float32.

    Raises
    ------
    AdapterError
        It has another type, or a number that is not finite.
    """
    info = file.tensors[key]
    if info.dtype not in ("F32", "F16", "BF16"):
        raise AdapterError(f"{file.path}: {key}: expected F32, F16 or BF16, got {info.dtype}")
    array = file.read(key).astype(np.float32)
    bad = find_non_finite(array)
    if bad:
        raise AdapterError(f"{file.path}: {key}: expected finite numbers, got {bad[1]} at index {bad[0]}")
    return array
