"""The numbers of the GGUF format: kinds of metadata, types of tensors.

Source: the GGUF specification (docs/gguf.md of ggml); block sizes from the block structures of ggml.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import ml_dtypes
import numpy as np

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32


class Kind(IntEnum):
    """What a metadata value is."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


NUMBERS: dict[Kind, np.dtype[Any]] = {
    Kind.UINT8: np.dtype("u1"), Kind.INT8: np.dtype("i1"), Kind.UINT16: np.dtype("<u2"), Kind.INT16: np.dtype("<i2"),
    Kind.UINT32: np.dtype("<u4"), Kind.INT32: np.dtype("<i4"), Kind.FLOAT32: np.dtype("<f4"), Kind.BOOL: np.dtype("?"),
    Kind.UINT64: np.dtype("<u8"), Kind.INT64: np.dtype("<i8"), Kind.FLOAT64: np.dtype("<f8"),
}  # fmt: skip


@dataclass(frozen=True)
class TensorType:
    """How the weights of a tensor are stored: blocks of `block` weights in `size` bytes."""

    number: int
    name: str
    block: int
    size: int

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor whose last dimension is a multiple of the block."""
        count = 1
        for extent in shape:  # Python integers: a product of huge extents cannot wrap around
            count *= extent
        return count // self.block * self.size


TENSOR_TYPES = {
    number: TensorType(number, name, block, size)
    for number, name, block, size in (
        (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 40), (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210), (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98), (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110), (22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8), (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56), (30, "BF16", 1, 2), (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36), (41, "Q1_0", 128, 18),
    )
}  # fmt: skip
TYPES_BY_NAME = {entry.name: entry for entry in TENSOR_TYPES.values()}
DENSE: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16), "F64": np.dtype("<f8"),
}  # fmt: skip
# Matrices of these types are used where the file is mapped (GGMLTensor).
BLOCK_TYPES = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")


@dataclass(frozen=True)
class Value:
    """A metadata value with what is needed to write it again: arrays have the kind of their items."""

    kind: Kind
    data: Any
    item: Kind | None = None
