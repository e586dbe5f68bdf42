"""How the matrices of a model without values are kept: their forms, and the bytes of these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .. import _core
from .kinds import Weights
from .parameter_values import META
from .quantization import NESTED, NF4, Quantization

TABLES = (16 + 256) * 4  # bytes of the tables that a prequantized matrix brings
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Form:
    """How a matrix is kept in memory: "float32", "bfloat16", "4bit", or a block format of GGUF files."""

    kind: str
    quantization: Quantization = NF4
    own_tables: bool = False  # of a prequantized file: what its codes mean
    is_mapped: bool = False  # used where the file is mapped: the system may drop it and read it again

    def weight(self, shape: tuple[int, ...], device: str = META) -> Any:
        """Return a matrix (out, in) of this form, without values."""
        q = self.quantization
        return _core.meta_weight(*shape, self.kind, block_size=q.block_size, double_quant=q.double_quant, device=device)

    @property
    def name(self) -> str:
        """For people: "NF4" in the place of "4bit"."""
        return self.quantization.quant_type.upper() if self.kind == "4bit" else self.kind

    def bytes_of(self, count: int) -> int:
        """Bytes of so many elements in whole rows, scales included."""
        if self.kind in _BYTES:
            return count * _BYTES[self.kind]
        if self.kind == "4bit":
            return -(-count // 2) + self.scale_bytes(count)
        values, size = _core.ggml_block(self.kind)
        return count // values * size

    def scale_bytes(self, count: int) -> int:
        """Bytes of the scales of so many elements in 4 bits."""
        blocks = -(-count // self.quantization.block_size)
        return blocks + 4 * -(-blocks // NESTED) if self.quantization.double_quant else 4 * blocks


def form_of(quantization: Quantization) -> Form:
    """The form of what is quantized while it is loaded."""
    return Form("4bit", quantization) if quantization.is_4bit else Form(quantization.quant_type.upper())


@dataclass
class MetaWeights(Weights):
    """Weights without values; forms: of the matrices that are frozen, by decoder name."""

    forms: dict[str, Form] = field(default_factory=dict)
    device: str = META
