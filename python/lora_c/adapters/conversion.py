"""From an adapter on a base of its own (PiSSA, OLoRA) to one for the original base."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..configs import LoraConfig
from .adapter import Adapter
from .data import F32, AdapterArrays, MatrixArrays


def can_convert(adapter: Adapter) -> bool:
    """Whether the original base and a plain adapter give the same model: the base of its own must be W - s B0 A0, which
    quantizing it breaks, and the row lengths of DoRA must not depend on it."""
    dense = all(isinstance(weight, np.ndarray) for weight in adapter.base.values())
    return dense and set(adapter.start) == set(adapter.base) and not adapter.config.use_dora


def for_original_base(arrays: AdapterArrays, start: Mapping[str, tuple[F32, F32]]) -> AdapterArrays:
    """Return the adapter of rank 2 r that the original base needs.

    W - s B0 A0 + s B A = W + s [B, -B0] [A; A0], as PEFT's path_initial_model_for_weight_conversion writes it.
    """
    matrices = dict(arrays.matrices)
    for name, (a, b) in start.items():
        matrix = matrices[name]
        matrices[name] = MatrixArrays(np.concatenate([matrix.A, a]), np.concatenate([matrix.B, -b], axis=1), matrix.scale)
    return replace(arrays, config=_doubled(arrays.config), matrices=matrices)


def _doubled(config: LoraConfig) -> LoraConfig:
    """Twice the rank at the same scale."""
    factor = math.sqrt(2) if config.use_rslora else 2.0
    values = config.model_dump() | {
        "r": 2 * config.r,
        "lora_alpha": factor * config.lora_alpha,
        "rank_pattern": {key: 2 * r for key, r in config.rank_pattern.items()},
        "alpha_pattern": {key: factor * alpha for key, alpha in config.alpha_pattern.items()},
        "init_lora_weights": True,
        "loftq_config": {},
    }
    return LoraConfig(**values)
