"""Bottleneck adapters: two small matrices and what lies between them, behind attention and the MLP.

Source: Houlsby et al., arXiv:1902.00751, section 2.1; Pfeiffer et al., arXiv:2005.00247, section 3.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .._core import Parameter
from ..configs import BottleneckConfig
from ..families.architectures import Architecture
from ..weights.parts import Parts
from .adapter import Adapter
from .bottleneck_config import Place, find_places
from .data import F32, AdapterArrays
from .initialize import generator_of
from .loaded import load_tensors
from .trained_weights import whole_copies

if TYPE_CHECKING:
    from ..model.base_weights import BaseWeights

_ACTIVATIONS = {"relu": "relu", "silu": "silu", "swish": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass
class BottleneckAdapter(Adapter):
    """Down, its bias, up and its bias by the decoder name of the projection that they lie behind."""

    bottlenecks: dict[str, list[Parameter]] = field(default_factory=dict)

    def parameters(self) -> list[Parameter]:
        """Every parameter, in the order of the forward pass within each kind."""
        return [parameter for parts in self.bottlenecks.values() for parameter in parts] + super().parameters()

    def arrays(self) -> AdapterArrays:
        """The present values, as a file would hold them."""
        saved = {name: parameter.data for name, parameter in self.saved.items()}
        tensors = {parameter.name: parameter.data for parts in self.bottlenecks.values() for parameter in parts}
        return AdapterArrays(self.config, saved=saved, tensors=tensors)

    def attach(self, decoder: Parts) -> None:
        """Put the bottlenecks into use."""
        for name, parts in self.bottlenecks.items():
            decoder.set_bottleneck(name, parts, self.config.scaling, _ACTIVATIONS[self.config.non_linearity])

    def detach(self, decoder: Parts) -> None:
        """Take the bottlenecks out of use."""
        for name in self.bottlenecks:
            decoder.remove_bottleneck(name)


def fresh_bottleneck(base_weights: BaseWeights, config: BottleneckConfig, device: str) -> BottleneckAdapter:
    """Return bottleneck adapters; with init_weights="mam_adapter" the output of the model stays as it is.

    Parameters
    ----------
    base_weights : BaseWeights
        Of the model that they are for.
    config : BottleneckConfig
        Where they lie, and how they begin.
    device : str
        Where the parameters lie.
    """
    architecture = base_weights.architecture
    tensors: dict[str, F32] = {}
    for place in find_places(config, architecture):
        tensors |= zip(place.keys(), _start(place, config), strict=True)
    saved = whole_copies(base_weights, config)
    return load_bottleneck(AdapterArrays(config, saved=saved, tensors=tensors), architecture, None, True, device)


def _start(place: Place, config: BottleneckConfig) -> list[F32]:
    """Down, its bias, up and its bias."""
    generator = generator_of(config.seed, place.module)
    down, down_bias, up, up_bias = (np.zeros(shape, np.float32) for shape in place.shapes())
    if config.init_weights == "mam_adapter":
        bound = np.float32(1 / math.sqrt(place.hidden_size))
        down[...] = (generator.random(down.shape, np.float32) * 2 - 1) * bound
    elif config.init_weights == "bert":
        down[...], up[...] = (
            generator.standard_normal(shape, np.float32) * np.float32(0.02) for shape in (down.shape, up.shape)
        )
    else:
        down[...], up[...] = (_cut_normal(generator, shape) * np.float32(0.01) for shape in (down.shape, up.shape))
    return [down, down_bias, up, up_bias]


def _cut_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> F32:
    """Normal numbers within two standard deviations: others are drawn again."""
    drawn = generator.standard_normal(shape, np.float32)
    while (outside := np.abs(drawn) > 2).any():
        drawn[outside] = generator.standard_normal(int(outside.sum()), np.float32)
    return drawn


def load_bottleneck(
    arrays: AdapterArrays, architecture: Architecture, embedding: F32 | None, trainable: bool, device: str
) -> BottleneckAdapter:
    """Make parameters of an adapter's arrays.

    Parameters
    ----------
    embedding : array or None
        Not needed.
    device : str
        Where the parameters lie.
    """
    config = arrays.config
    assert isinstance(config, BottleneckConfig)
    made, saved = load_tensors(arrays, architecture, trainable, device)
    bottlenecks = {place.name: [made[key] for key in place.keys()] for place in find_places(config, architecture)}
    return BottleneckAdapter(config, saved=saved, bottlenecks=bottlenecks)
