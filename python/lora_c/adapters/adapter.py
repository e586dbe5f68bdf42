"""An adapter on a model: its parameters, where the decoder takes them, and what a file of it would hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .._core import Parameter
from ..configs import AdapterConfig, LoraConfig
from ..weights.parameter_values import set_rows
from ..weights.parts import Parts
from .data import F32, AdapterArrays, MatrixArrays, TokenRows


@dataclass(frozen=True)
class LoadedAdapter:
    """The update of one projection: A (r, in), B (out, r), their scale, and DoRA's magnitude (out,)."""

    module: str
    A: Parameter
    B: Parameter
    scale: float
    magnitude: Parameter | None = None

    def parameters(self) -> list[Parameter]:
        """A, B and the magnitude."""
        return [p for p in (self.A, self.B, self.magnitude) if p is not None]

    def arrays(self) -> MatrixArrays:
        """The present values."""
        magnitude = None if self.magnitude is None else self.magnitude.data
        return MatrixArrays(self.A.data, self.B.data, self.scale, magnitude)


@dataclass(frozen=True)
class TrainedTokens:
    """Rows of the embedding, and the copy of the embedding that holds them while the adapter is in use."""

    ids: list[int]
    rows: Parameter
    embedding: Parameter

    def whole(self) -> F32:
        """The embedding with the rows as they are now."""
        return set_rows(self.embedding, self.ids, self.rows.data)


@dataclass
class Adapter:
    """A named adapter of LoRA, and what all kinds have in common.

    Attributes
    ----------
    config : AdapterConfig
        Its options; their class says of which kind it is.
    layers : dict
        Decoder name to the update of that matrix; empty in other kinds than LoRA.
    saved : dict
        Decoder name to a tensor that is trained whole.
    tokens : TrainedTokens or None
        Rows of the embedding.
    base : dict
        Weights that take the place of the model's own while it is in use (see `initialize`).
    start : dict
        The (A, B) that were taken out of those.
    """

    config: AdapterConfig
    layers: dict[str, LoadedAdapter] = field(default_factory=dict)
    saved: dict[str, Parameter] = field(default_factory=dict)
    tokens: TrainedTokens | None = None
    base: dict[str, Any] = field(default_factory=dict)
    start: dict[str, tuple[F32, F32]] = field(default_factory=dict)

    @property
    def is_shareable(self) -> bool:
        """Whether a call of the decoder can use it beside others: low-rank updates of the layers' matrices can be.

        What belongs to the decoder (weights in the place of its own, vectors, bottlenecks, virtual tokens) all sequences have.
        """
        return isinstance(self.config, LoraConfig) and not (
            self.replaced()
            or {"embed_tokens", "lm_head"} & self.layers.keys()
            or any(layer.magnitude is not None for layer in self.layers.values())
        )

    @property
    def n_virtual(self) -> int:
        """Tokens of its own that it puts before every sequence."""
        return 0

    def parts(self) -> list[Adapter]:
        """The adapters that it consists of: itself, or those of a stack."""
        return [self]

    def parameters(self) -> list[Parameter]:
        """Every parameter, in the order of the forward pass within each kind."""
        found = [p for layer in self.layers.values() for p in layer.parameters()]
        found += self.saved.values()
        return found + ([self.tokens.rows] if self.tokens else [])

    def replaced(self) -> dict[str, Any]:
        """Decoder name to the weight that takes the place of the model's own."""
        return {**self.base, **self.saved, **({"embed_tokens": self.tokens.embedding} if self.tokens else {})}

    def arrays(self) -> AdapterArrays:
        """The present values, as a file would hold them."""
        saved = {name: parameter.data for name, parameter in self.saved.items()}
        rows = TokenRows(self.tokens.ids, self.tokens.rows.data) if self.tokens else None
        return AdapterArrays(self.config, {name: layer.arrays() for name, layer in self.layers.items()}, saved, rows)

    def attach(self, decoder: Parts) -> None:
        """Put what it adds to the base into use; weights that it replaces are put in their places by `AdapterSet`."""
        for name, layer in self.layers.items():
            dropout = 0.0 if name == "embed_tokens" else self.config.lora_dropout  # PEFT's embeddings have none
            decoder.set_adapter(
                name, layer.A, layer.B, scale=layer.scale, dropout=dropout, seed=self.config.seed, magnitude=layer.magnitude
            )

    def detach(self, decoder: Parts) -> None:
        """Take out of use what `attach` put there."""
        for name in self.layers:
            decoder.remove_adapter(name)
