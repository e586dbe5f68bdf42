"""The decoder's matrices and the tensors of a file, where one tensor holds several matrices behind each other.

The tensor stays whole in the model: it is quantized, adapted, merged and saved as the file has it. The decoder borrows rows
of it, and of its adapter the whole A and the same rows of B.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .._core import Decoder, NF4Tensor, Parameter
from ..families.architectures import WeightSpec
from .quantization import NESTED, Quantization, quantization_of

if TYPE_CHECKING:
    from .._core import DecoderAdapters


class Parts:
    """Gives a decoder its weights and adapters by the names of the model's tensors."""

    def __init__(self, decoder: Decoder, specs: Iterable[WeightSpec]) -> None:
        self._decoder = decoder
        self._parts = {spec.name: spec.parts for spec in specs if spec.parts}
        self._dequantized: dict[str, int] = {}

    @property
    def dequantized_bytes(self) -> int:
        """Bytes of the float32 arrays that the decoder reads in the place of quantized tensors, which the model keeps, too."""
        return sum(self._dequantized.values())

    def set_weight(self, name: str, weight: Any) -> None:
        """As `Decoder.set_weight`."""
        if name not in self._parts:
            self._decoder.set_weight(name, weight)
            return
        self._dequantized.pop(name, None)
        options = quantization_of(weight)
        if isinstance(weight, NF4Tensor) and options and is_dequantized(self._parts[name], weight.shape, options):
            weight = weight.dequantize()
            self._dequantized[name] = weight.nbytes
        for part, first in self._parts[name]:
            self._decoder.set_weight(part, weight, row=first)

    def set_adapter(self, name: str, A: Parameter, B: Parameter, **options: Any) -> None:
        """As `Decoder.set_adapter`."""
        if name not in self._parts:
            self._decoder.set_adapter(name, A, B, **options)
        for part, first in self._parts.get(name, ()):
            self._decoder.set_adapter(part, A, B, row=first, **options)

    def new_adapters(self) -> DecoderAdapters:
        """As `Decoder.new_adapters`."""
        return self._decoder.new_adapters()

    def fill_slots(self, slots: DecoderAdapters, name: str, A: Parameter, B: Parameter, scale: float) -> None:
        """Put an update into slots of `new_adapters`."""
        if name not in self._parts:
            slots.set(name, A, B, scale=scale)
        for part, first in self._parts.get(name, ()):
            slots.set(part, A, B, scale=scale, row=first)

    def remove_adapter(self, name: str) -> None:
        """As `Decoder.remove_adapter`."""
        for part, _ in self._parts.get(name, ((name, 0),)):
            self._decoder.remove_adapter(part)

    def set_scaling(self, name: str, vector: Parameter, input: bool) -> None:
        """As `Decoder.set_scaling`; matrices that read the same input share its vector."""
        if name not in self._parts:
            self._decoder.set_scaling(name, vector, input=input)
        for part, first in self._parts.get(name, ()):
            self._decoder.set_scaling(part, vector, input=input, row=None if input else first)

    def remove_scaling(self, name: str) -> None:
        """As `Decoder.remove_scaling`."""
        for part, _ in self._parts.get(name, ((name, 0),)):
            self._decoder.remove_scaling(part)

    def set_bottleneck(self, name: str, parts: Sequence[Parameter], scale: float, activation: Any) -> None:
        """As `Decoder.set_bottleneck`; parts are down, its bias, up and its bias."""
        down, down_bias, up, up_bias = parts
        self._decoder.set_bottleneck(name, down, down_bias, up, up_bias, scale=scale, activation=activation)

    def remove_bottleneck(self, name: str) -> None:
        """As `Decoder.remove_bottleneck`."""
        self._decoder.remove_bottleneck(name)

    def set_token_rows(self, ids: Any, rows: Parameter | None) -> None:
        """As `Decoder.set_token_rows`."""
        self._decoder.set_token_rows(ids, rows)

    def set_virtual_tokens(self, kind: Any, values: Any = None, scale: float = 1.0) -> None:
        """As `Decoder.set_virtual_tokens`."""
        self._decoder.set_virtual_tokens(kind, values, scale=scale)


def is_dequantized(parts: Iterable[tuple[str, int]], shape: Sequence[int], quantization: Quantization) -> bool:
    """Whether a decoder cannot borrow the rows of a tensor in 4 bits, as one of its matrices begins within a block of scales.

    Parameters
    ----------
    parts : iterable of (str, int)
        The matrices, and the first row of each (`WeightSpec.parts`).
    shape : (int, int)
        Rows and columns of the whole.
    """
    unit = quantization.block_size * (NESTED if quantization.double_quant else 1)
    return any(first * shape[1] % unit for _, first in parts)
