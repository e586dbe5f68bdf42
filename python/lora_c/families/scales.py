"""Factors within a model's function: of the embedding, the residual stream, the attention and the logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from .config_values import agreed, number
from .table import Family

_MULTIPLIERS = {
    "embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention_scale",
}  # fmt: skip


def scales_of(config: Mapping[str, Any], family: Family, hidden: int) -> dict[str, Any]:
    """Arguments of `Decoder` that a config.json gives as factors."""
    out: dict[str, Any] = {}
    if family.embedding_scale == "sqrt":
        out["embedding_scale"] = _rounded(math.sqrt(hidden), config)
    if family.embedding_scale == "multiplier":
        out |= {name: number(config, key) for key, name in _MULTIPLIERS.items()}
        out["logit_scale"] = 1.0 / number(config, "logits_scaling")
    if "query_pre_attn_scalar" in family.keys:
        out["attention_scale"] = number(config, "query_pre_attn_scalar") ** -0.5
        for key, name in (("attn_logit_softcapping", "attention_softcap"), ("final_logit_softcapping", "logit_softcap")):
            if config.get(key) is not None:
                out[name] = number(config, key)
    if config.get("scale_attn_weights") is False and "scale_attn_weights" in family.keys:
        out["attention_scale"] = 1.0
    return out


def stated_dtype(config: Mapping[str, Any]) -> str | None:
    """The type that a config.json gives for the weights, in either spelling."""
    given = {key: str(config[key]).removeprefix("torch.") for key in ("dtype", "torch_dtype") if config.get(key) is not None}
    name = agreed(given)
    return None if name is None else str(name)


def _rounded(x: float, config: Mapping[str, Any]) -> float:
    """transformers keeps the embedding's factor in the type of the embedding, and so did the training."""
    kinds = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
    return float(np.asarray(x).astype(kinds.get(stated_dtype(config) or "", np.float32)))
