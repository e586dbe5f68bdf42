"""Models of well-known shapes with random weights: speed and memory depend on the shape, not on what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import lora_c as lc
from lora_c.architectures import WeightSpec, architecture_of
from lora_c.loading import Weights

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": LLAMA
    | {"hidden_size": 128, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2}
    | {"intermediate_size": 384, "vocab_size": 512, "max_position_embeddings": 512, "tie_word_embeddings": True},
    "135m": LLAMA
    | {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    | {"intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True},
    "1.1b": LLAMA
    | {"hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4}
    | {"intermediate_size": 5632, "vocab_size": 32000, "max_position_embeddings": 2048, "tie_word_embeddings": False},
}


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
