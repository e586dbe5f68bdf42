"""What a weight is: an array, an NF4 tensor, blocks of a GGUF file, or a parameter; and the weights of a model together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .._core import GGMLTensor, NF4Tensor, Parameter

if TYPE_CHECKING:
    from ..checkpoints.prequantized import QuantRecord


def dense(weight: Any) -> NDArray[Any]:
    """Return a weight as an array: float32 for 4-bit types and the blocks of GGUF files, unchanged for dense ones."""
    if isinstance(weight, (NF4Tensor, GGMLTensor)):
        return weight.dequantize()
    return weight.data if isinstance(weight, Parameter) else weight


def dense_rows(weight: Any, rows: slice) -> NDArray[np.float32]:
    """Return some rows of a weight as float32; of the blocks of GGUF files only theirs are unpacked."""
    if not isinstance(weight, GGMLTensor):
        return np.asarray(dense(weight)[rows], np.float32)
    blocks = np.ascontiguousarray(weight.blocks.reshape(weight.shape[0], -1)[rows])
    return GGMLTensor.from_blocks(blocks.reshape(-1), (len(blocks), weight.shape[1]), weight.type).dequantize()


def format_of(weight: Any) -> str:
    """Name how a weight is kept: "NF4" or another 4-bit type, a block format of GGUF files, or a NumPy type."""
    if isinstance(weight, NF4Tensor):
        return weight.quant_type.upper()
    return weight.type if isinstance(weight, GGMLTensor) else str(dense(weight).dtype)


def is_same_weight(own: Any, array: NDArray[np.float32]) -> bool:
    """Whether a weight of the model is this array, rounded to the type that the weight is kept in."""
    if isinstance(own, GGMLTensor) and own.type == "Q8_0":
        return bool(np.array_equal(GGMLTensor.quantize(array).blocks, own.blocks))
    if isinstance(own, GGMLTensor):
        kept = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}.get(own.type, np.float32)
        return bool(np.array_equal(own.dequantize(), array.astype(kept).astype(np.float32)))
    kept_array = dense(own)
    return bool(np.array_equal(kept_array, array.astype(kept_array.dtype)))


@dataclass
class RequantizationError:
    """How far weights moved that were quantized already and then quantized again: sums over all of them."""

    squared_error: float = 0.0
    squared_norm: float = 0.0

    def add(self, before: NDArray[np.float32], after: NDArray[np.float32]) -> None:
        """Count one matrix. `after` is overwritten."""
        after -= before
        self.squared_error += float(np.vdot(after, after))
        self.squared_norm += float(np.vdot(before, before))

    @property
    def relative(self) -> float:
        """Norm of the change relative to the norm of the weights."""
        return math.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else 0.0


@dataclass
class Weights:
    """The weights of a model by decoder name, and what is needed to save them as they were.

    quantized_here: names of those that were quantized while they were loaded, of which the folder holds more. drawn: of those
    that no file has, and which are of no use before they are trained.
    """

    values: dict[str, Any] = field(default_factory=dict)
    stored_dtypes: dict[str, np.dtype[Any]] = field(default_factory=dict)
    records: dict[str, QuantRecord] = field(default_factory=dict)
    requantized: RequantizationError | None = None
    quantized_here: set[str] = field(default_factory=set)
    drawn: set[str] = field(default_factory=set)
