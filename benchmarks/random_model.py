"""Models of well-known shapes with random weights: speed and memory depend on the shape, not on what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from shapes import SHAPES

import lora_c as lc
from lora_c.families.architectures import WeightSpec, architecture_of
from lora_c.model.loading import Weights


def random_model(shape: str, *, quantize: bool = True, seed: int = 0) -> lc.Model:
    """A model of SHAPES: projections in NF4 with double quantization (or bfloat16), the rest bfloat16 and float32."""
    architecture = architecture_of(SHAPES[shape])
    rng = np.random.Generator(np.random.SFC64(seed))
    weights = Weights()
    for spec in architecture.weights():
        weights.values[spec.name] = _random_weight(spec, rng, quantize)
        weights.stored_dtypes[spec.name] = np.dtype(ml_dtypes.bfloat16)
    return lc.Model(dict(SHAPES[shape]), architecture, weights, Path("random"), None)


def _random_weight(spec: WeightSpec, rng: np.random.Generator, quantize: bool) -> Any:
    if spec.kind == "vector":
        return np.ones(spec.shape, np.float32)
    values = rng.standard_normal(spec.shape, np.float32) * np.float32(spec.shape[1] ** -0.5)
    if spec.kind == "projection" and quantize:
        return lc.NF4Tensor.quantize(values, double_quant=True)
    return values.astype(ml_dtypes.bfloat16)
