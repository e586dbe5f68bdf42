"""IA3: vectors that multiply what matrices put out or read.

Source: IA3, arXiv:2205.05638, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .._core import Parameter
from ..configs import IA3Config
from ..families.architectures import Architecture
from ..weights.parts import Parts
from .adapter import Adapter
from .data import F32, AdapterArrays
from .ia3_config import find_vectors, resolved
from .initialize import generator_of
from .loaded import load_tensors
from .trained_weights import refuse_trained_targets, whole_copies

if TYPE_CHECKING:
    from ..model.base_weights import BaseWeights


@dataclass(frozen=True)
class ScalingVector:
    """The vector of one matrix: of its input, else of its output."""

    module: str
    parameter: Parameter
    input: bool

    @property
    def values(self) -> F32:
        """The present values, (n,)."""
        return self.parameter.data.reshape(-1)


@dataclass
class IA3Adapter(Adapter):
    """Vectors by the decoder name of their matrix; a tensor that holds several matrices has one vector.

    Attributes
    ----------
    file_config : IA3Config
        The configuration with the names that it means in this model, for files.
    """

    vectors: dict[str, ScalingVector] = field(default_factory=dict)
    file_config: IA3Config | None = None

    def parameters(self) -> list[Parameter]:
        """Every parameter, in the order of the forward pass within each kind."""
        return [vector.parameter for vector in self.vectors.values()] + super().parameters()

    def arrays(self) -> AdapterArrays:
        """The present values, as a file would hold them."""
        saved = {name: parameter.data for name, parameter in self.saved.items()}
        tensors = {vector.parameter.name: vector.parameter.data for vector in self.vectors.values()}
        return AdapterArrays(self.file_config or self.config, saved=saved, tensors=tensors)

    def attach(self, decoder: Parts) -> None:
        """Put the vectors into use."""
        for name, vector in self.vectors.items():
            decoder.set_scaling(name, vector.parameter, vector.input)

    def detach(self, decoder: Parts) -> None:
        """Take the vectors out of use."""
        for name in self.vectors:
            decoder.remove_scaling(name)


def fresh_ia3(base_weights: BaseWeights, config: IA3Config, device: str) -> IA3Adapter:
    """Return an IA3 adapter that leaves the output of the model as it is, unless it begins with random numbers.

    Parameters
    ----------
    base_weights : BaseWeights
        Of the model that it is for.
    config : IA3Config
        What is adapted, and how it begins.
    device : str
        Where its parameters lie.

    Raises
    ------
    AdapterError
        The configuration matches no module.
    """
    architecture = base_weights.architecture
    targets = find_vectors(config, architecture)
    refuse_trained_targets([target.spec.name for target in targets], base_weights.weights.values)
    tensors = {}
    for target in targets:
        if config.init_ia3_weights:
            tensors[target.key] = np.ones(target.shape, np.float32)
        else:
            tensors[target.key] = generator_of(config.seed, target.spec.module).standard_normal(target.shape, np.float32)
    saved = whole_copies(base_weights, config)
    return load_ia3(AdapterArrays(config, saved=saved, tensors=tensors), architecture, None, True, device)


def load_ia3(
    arrays: AdapterArrays, architecture: Architecture, embedding: F32 | None, trainable: bool, device: str
) -> IA3Adapter:
    """Make parameters of an adapter's arrays.

    Parameters
    ----------
    embedding : array or None
        Not needed.
    device : str
        Where the parameters lie.
    """
    config = arrays.config
    assert isinstance(config, IA3Config)
    made, saved = load_tensors(arrays, architecture, trainable, device)
    vectors = {
        target.spec.name: ScalingVector(target.spec.module, made[target.key], target.input)
        for target in find_vectors(config, architecture, strict=False)
    }
    return IA3Adapter(config, saved=saved, vectors=vectors, file_config=resolved(config, architecture))


def scaled_by(adapter: Adapter) -> dict[str, ScalingVector]:
    """Decoder name to vector, of an adapter and of the parts of a stack."""
    parts = [part for part in adapter.parts() if isinstance(part, IA3Adapter)]
    return {name: vector for part in parts for name, vector in part.vectors.items()}
