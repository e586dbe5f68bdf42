"""How a base is quantized, and a matrix in that form."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._core import GGMLTensor, NF4Tensor
from ..configs.quantization import FOUR_BIT, Q8_0_BLOCK, QuantType

NESTED = 256  # scales of 4-bit blocks that have one scale of their own


class Quantization(NamedTuple):
    """A type with its options.

    Attributes
    ----------
    quant_type : str
        "nf4", "fp4", "fp4_e2m1" or "int4"; or "q8_0", the blocks of 32 weights of GGUF files.
    block_size : int
        Weights per scale, of the 4-bit types.
    double_quant : bool
        Whether the scales are quantized too, of the 4-bit types.
    """

    quant_type: QuantType = "nf4"
    block_size: int = 64
    double_quant: bool = True

    @property
    def is_4bit(self) -> bool:
        """Whether it is one of the types that share NF4's layout."""
        return self.quant_type in FOUR_BIT

    def in_4bit(self, quant_type: str) -> Quantization:
        """Return another 4-bit type with these details."""
        return self._replace(quant_type=quant_type)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix can have this form: blocks of Q8_0 end with a row, those of the others do not care."""
        return self.is_4bit or shape[-1] % Q8_0_BLOCK == 0

    def quantize(self, array: NDArray[Any], device: str = "cpu") -> NF4Tensor | GGMLTensor:
        """Return a matrix (out, in) in this form, in memory of the host.

        Parameters
        ----------
        array : array
            float32, float16 or bfloat16.
        device : str
            Where the 4-bit types are computed, with the same bytes everywhere; Q8_0 is the CPU's.

        Raises
        ------
        ValueError
            A value is not finite, or the form does not fit.
        DeviceError
            The device cannot be used.
        """
        array = np.ascontiguousarray(array)
        if not self.is_4bit:
            return GGMLTensor.quantize(array, type=self.quant_type.upper())
        return NF4Tensor.quantize(
            array, block_size=self.block_size, double_quant=self.double_quant, quant_type=self.quant_type, device=device
        )

    def options(self) -> dict[str, Any]:
        """As `load_model` has them."""
        details = {"block_size": self.block_size, "double_quant": self.double_quant} if self.is_4bit else {}
        return {"quantize": self.quant_type, **details}


NF4 = Quantization()


def quantization_of(weight: Any) -> Quantization | None:
    """Return the form that a weight has; None where it is none of these."""
    if isinstance(weight, NF4Tensor):
        return Quantization(weight.quant_type, weight.block_size, weight.double_quant)  # type: ignore[arg-type]
    return Quantization("q8_0") if isinstance(weight, GGMLTensor) and weight.type == "Q8_0" else None
