"""The weights of a model's base: as they are in memory, as the folder has them, and how one is put in another form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import NF4Tensor
from ..checkpoints.folder import Checkpoint
from ..checkpoints.tied_head import stored_name
from ..families.architectures import Architecture
from ..weights.kinds import Weights, dense
from .loading import in_order


@dataclass(frozen=True)
class BaseWeights:
    """What a new adapter is made from.

    Attributes
    ----------
    architecture : Architecture
        Names and shapes.
    weights : Weights
        In memory, by decoder name.
    source : Path
        The folder or file that they come from.
    nf4_options : tuple of int and bool
        Block size, and whether the scales are quantized too, of what is quantized.
    """

    architecture: Architecture
    weights: Weights
    source: Path
    nf4_options: tuple[int, bool] = (64, True)

    def of(self, name: str) -> Any:
        """Return a weight as it is kept; a tied head is the embedding."""
        return self.weights.values[name if name in self.weights.values else "embed_tokens"]

    def full_precision(self, name: str) -> NDArray[Any]:
        """Return a weight as its folder has it, where that is still more than what is in memory."""
        weight = self.weights.values[name]
        quantized_here = isinstance(weight, NF4Tensor) and name not in self.weights.records
        if quantized_here and (self.source / "config.json").is_file():
            spec = next(spec for spec in self.architecture.weights() if spec.name == name)
            with Checkpoint(self.source) as checkpoint:
                file_name = stored_name(spec, checkpoint.tensors)
                if file_name in checkpoint.tensors:
                    return np.array(in_order(spec, checkpoint.read(file_name)), np.float32)
        return dense(weight)

    def quantize(self, array: NDArray[Any]) -> NF4Tensor:
        """Return a matrix (out, in) in NF4, with this base's options."""
        block_size, double_quant = self.nf4_options
        return NF4Tensor.quantize(np.ascontiguousarray(array), block_size=block_size, double_quant=double_quant)
