"""The weights of a model's base: as they are in memory, as the folder has them, and how one is put in another form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.folder import Checkpoint
from ..checkpoints.tied_head import stored_name
from ..families.architectures import Architecture
from ..text.tokenizer import Tokenizer
from ..weights.kinds import Weights, dense
from ..weights.quantization import NF4, Quantization
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
    quantization : Quantization
        Type and options of what is quantized.
    tokenizer : callable, optional
        Returns the model's tokenizer, for an adapter that begins as a text.
    """

    architecture: Architecture
    weights: Weights
    source: Path
    quantization: Quantization = NF4
    tokenizer: Callable[[], Tokenizer] | None = None

    def of(self, name: str) -> Any:
        """Return a weight as it is kept; a tied head is the embedding."""
        return self.weights.values[name if name in self.weights.values else "embed_tokens"]

    def full_precision(self, name: str) -> NDArray[Any]:
        """Return a weight as its folder has it, where that is still more than what is in memory."""
        weight = self.weights.values[name]
        if name in self.weights.quantized_here and (self.source / "config.json").is_file():
            spec = next(spec for spec in self.architecture.weights() if spec.name == name)
            with Checkpoint(self.source) as checkpoint:
                file_name = stored_name(spec, checkpoint.tensors)
                if file_name in checkpoint.tensors:
                    return np.array(in_order(spec, checkpoint.read(file_name)), np.float32)
        return dense(weight)

    def quantize(self, array: NDArray[Any]) -> Any:
        """Return a matrix (out, in) in this base's form; one that the form does not fit stays as it is."""
        return self.quantization.quantize(array) if self.quantization.fits(array.shape) else array
