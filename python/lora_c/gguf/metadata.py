"""The config.json of a model as the metadata of a GGUF file: the inverse of `config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..families.architectures import Architecture
from .config import llama3_factors
from .families import GGUFFamily
from .format import Value
from .writer import GGUFEntry, float32, text, uint32

_SIZES = {
    "block_count": "num_hidden_layers", "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "attention.value_length": "head_dim", "vocab_size": "vocab_size",
}  # fmt: skip
# Keys of config.json that have a number of their own in the file.
_NUMBERS = {
    "attention_multiplier": "attention.scale", "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale",
    "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
    "rope_local_base_freq": "rope.freq_base_swa",
}  # fmt: skip


def metadata_of(
    config: Mapping[str, Any], architecture: Architecture, family: GGUFFamily
) -> tuple[dict[str, Value], list[GGUFEntry]]:
    """Return the metadata of the architecture, and the tensors that hold rotation factors.

    Raises
    ------
    CheckpointError
        The model needs what the format has no key for.
    """
    sizes, arch = architecture.decoder_kwargs, family.arch
    values = {"general.architecture": text(arch)}
    values |= {f"{arch}.{key}": uint32(int(sizes[name])) for key, name in _SIZES.items()}
    kind = "layer_norm_epsilon" if sizes["norm"] == "layer" else "layer_norm_rms_epsilon"
    values[f"{arch}.attention.{kind}"] = float32(sizes["norm_eps"])
    given = {key: name for name, key in _NUMBERS.items() if isinstance(config.get(name), (int, float))}
    values |= {f"{arch}.{key}": float32(float(config[name])) for key, name in given.items()}
    window = config.get("sliding_window")
    if isinstance(window, int) and window and family.arch in ("gemma2", "gemma3", "phi3"):
        values[f"{arch}.attention.sliding_window"] = uint32(window)
    elif np.any(sizes["sliding_window"]):
        raise CheckpointError(f"GGUF: expected attention without a window for {arch}, got a window of {window}; save a folder")
    if architecture.family.rope == "none":
        return values, []
    rope, tensors = _rope(config, int(sizes["head_dim"]), arch)
    return values | {f"{arch}.{key}": value for key, value in rope.items()}, tensors


def _rope(config: Mapping[str, Any], head_dim: int, arch: str) -> tuple[dict[str, Value], list[GGUFEntry]]:
    scaling = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    local = dict(scaling.get("sliding_attention") or {})
    scaling = dict(scaling.get("full_attention") or scaling)  # tables per kind of layer
    theta = float(scaling.get("rope_theta", config.get("rope_theta", 10000.0)))
    rotated = int(head_dim * float(config.get("partial_rotary_factor") or 1.0))
    values = {"rope.freq_base": float32(theta), "rope.dimension_count": uint32(rotated)}
    if local:
        values["rope.freq_base_swa"] = float32(float(local["rope_theta"]))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        values |= {"rope.scaling.type": text("linear"), "rope.scaling.factor": float32(scaling["factor"])}
    elif kind == "yarn":
        old = scaling.get("original_max_position_embeddings", config["max_position_embeddings"])
        values |= {
            "rope.scaling.type": text("yarn"), "rope.scaling.factor": float32(scaling["factor"]),
            "rope.scaling.original_context_length": uint32(int(old)),
        }  # fmt: skip
    elif kind == "llama3":
        old = float(scaling.get("original_max_position_embeddings", config.get("max_position_embeddings", 8192)))
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        values["rope.scaling.original_context_length"] = uint32(int(old))
        factors = llama3_factors(head_dim // 2, theta, float(scaling["factor"]), low, high, old)
        return values, [_vector("rope_freqs.weight", factors)]
    elif kind == "longrope" and arch == "phi3":
        old = config.get("original_max_position_embeddings") or scaling["original_max_position_embeddings"]
        values |= {"rope.scaling.type": text("longrope"), "rope.scaling.original_context_length": uint32(int(old))}
        return values, [_vector(f"rope_factors_{key}.weight", scaling[f"{key}_factor"]) for key in ("long", "short")]
    elif kind != "default":
        raise CheckpointError(
            f"GGUF: rope_type: expected default, linear, yarn or llama3, got {kind!r}; save a folder instead"
        )
    return values, []


def _vector(name: str, values: Any) -> GGUFEntry:
    stored = np.asarray(values, np.float32)
    return GGUFEntry(name, "F32", stored.shape, lambda: stored)
