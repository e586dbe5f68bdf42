"""Weights of the base that are trained beside an adapter belong into its file, as PEFT's modules_to_save."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import Parameter
from ..configs import BottleneckConfig, IA3Config, LoraConfig
from ..errors import AdapterError
from ..families.architectures import Architecture
from ..weights.kinds import dense
from .data import F32, AdapterArrays, specs_by_name
from .targets import AdapterTarget, find_saved

if TYPE_CHECKING:
    from ..model.base_weights import BaseWeights


def with_trained_weights(arrays: AdapterArrays, weights: Mapping[str, Any], architecture: Architecture) -> AdapterArrays:
    """Add the base's own trained weights (of a model loaded with trainable="head") to what an adapter file holds."""
    trained = {name: w.data for name, w in weights.items() if isinstance(w, Parameter) and w.requires_grad}
    if not trained:
        return arrays
    specs = specs_by_name(architecture)
    modules = sorted({specs[name].module.rpartition(".")[2] for name in trained})
    names = list(dict.fromkeys([*(arrays.config.modules_to_save or []), *modules]))
    config = arrays.config.model_copy(update={"modules_to_save": names})
    return replace(arrays, config=config, saved={**trained, **arrays.saved})


def whole_copy(base_weights: BaseWeights, name: str) -> F32:
    """A float32 copy of a weight that is to be trained."""
    return np.array(dense(base_weights.of(name)), np.float32)


def whole_copies(
    base_weights: BaseWeights, config: LoraConfig | IA3Config | BottleneckConfig, targets: Iterable[AdapterTarget] = ()
) -> dict[str, F32]:
    """Copies of the weights that an adapter's configuration has trained whole, by decoder name; see `find_saved`."""
    specs = find_saved(config, base_weights.architecture, targets)
    return {spec.name: whole_copy(base_weights, spec.name) for spec in specs}


def refuse_trained_targets(names: Iterable[str], weights: Mapping[str, Any]) -> None:
    """Refuse an adapter on a matrix that is trained itself: no file could hold both.

    Raises
    ------
    AdapterError
        Naming the matrix.
    """
    both = next((name for name in names if isinstance(weights.get(name), Parameter)), None)
    if both is not None:
        raise AdapterError(
            f"target_modules: expected matrices that are frozen, got {both}, which is trained itself; leave it out with "
            "exclude_modules, or load the model without trainable"
        )
