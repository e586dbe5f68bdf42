"""Weights that are a function of a tensor's name and shape, the same for whoever needs them."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray


def tensor(name: str, shape: tuple[int, ...], around_zero: bool) -> NDArray[np.float32]:
    """Uniform numbers; vectors of norms around 1, or around 0 where the family adds the 1 itself."""
    bits = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode())) * np.uint64(2654435761)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    uniform = (bits >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - 1
    is_norm = len(shape) == 1 and name.endswith("weight")
    size = 0.3 if len(shape) == 1 else 2.5 / shape[-1] ** 0.5
    values = np.float32(size) * uniform + np.float32(is_norm and not around_zero)
    return np.ascontiguousarray(values.reshape(shape), np.float32)
