"""An adapter as arrays, whatever file it came from or goes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..configs import AdapterConfig
from ..families.architectures import Architecture, WeightSpec

F32 = NDArray[np.float32]
PREFIX = "base_model.model."  # of PEFT's names of tensors


@dataclass(frozen=True)
class MatrixArrays:
    """The update scale * B A of one matrix, A (r, in), B (out, r); with DoRA the row lengths `magnitude` (out,)."""

    A: F32
    B: F32
    scale: float
    magnitude: F32 | None = None

    @property
    def r(self) -> int:
        """The rank."""
        return int(self.A.shape[0])


@dataclass(frozen=True)
class TokenRows:
    """Trained rows (n, hidden_size) of the embedding, in the order of their token ids."""

    ids: list[int]
    rows: F32


@dataclass(frozen=True)
class AdapterArrays:
    """Everything that an adapter file holds.

    Attributes
    ----------
    matrices : dict
        Decoder name ("layers.0.q_proj") to the update of that matrix.
    saved : dict
        Decoder name to a whole tensor that takes the place of the base's: modules_to_save and trained biases.
    tokens : TokenRows or None
        Trained rows of the embedding.
    residual_base : dict
        Decoder name to the weight that the update belongs to where that is not the base's own (PiSSA, OLoRA, LoftQ):
        a function that returns it.
    tensors : dict
        What an adapter of another kind than LoRA holds, under the names of PEFT's file.
    """

    config: AdapterConfig
    matrices: Mapping[str, MatrixArrays] = field(default_factory=dict)
    saved: Mapping[str, F32] = field(default_factory=dict)
    tokens: TokenRows | None = None
    residual_base: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    tensors: Mapping[str, F32] = field(default_factory=dict)


def all_specs(architecture: Architecture) -> list[WeightSpec]:
    """The tensors of a model, and the head also where it is tied to the embedding: an adapter can untie it."""
    specs = architecture.weights()
    if architecture.tied:
        embedding = next(spec for spec in specs if spec.kind == "embedding")
        specs.append(WeightSpec("lm_head", "lm_head.weight", embedding.shape, "head"))
    return specs


def specs_by_name(architecture: Architecture) -> dict[str, WeightSpec]:
    """Decoder name to spec, the head included."""
    return {spec.name: spec for spec in all_specs(architecture)}
