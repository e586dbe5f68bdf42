"""Rotation frequencies: what a config.json says about RoPE, as tables for the decoder.

Reads both spellings: `rope_theta` with `rope_scaling`, and `rope_parameters`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CheckpointError

F64 = NDArray[np.float64]
KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
_KNOWN = {
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
    "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate", "short_factor", "long_factor",
    "partial_rotary_factor", "finetuned",
}  # fmt: skip


@dataclass(frozen=True)
class Rope:
    """One table. inv_freq (pairs that turn,): angle per position; scale multiplies cosine and sine.

    long_inv_freq: used instead for sequences of more than `switch` tokens (longrope).
    """

    inv_freq: F64
    scale: float = 1.0
    long_inv_freq: F64 | None = None
    switch: int = 0


def rope_of(config: Mapping[str, Any], head_dim: int, positions: int, aliases: Mapping[str, str] | None = None) -> Rope:
    """Return the table of a config.json.

    Parameters
    ----------
    positions : int
        max_position_embeddings.
    aliases : mapping, optional
        The family's own names of rope types.

    Raises
    ------
    CheckpointError
        The kind of scaling is not supported, or a number is missing or absurd.

    Source: RoFormer, arXiv:2104.09864; position interpolation, arXiv:2306.15595; YaRN, arXiv:2309.00071; LongRoPE,
    arXiv:2402.13753; the "llama3" rule of Llama 3.1. Values are rounded to float32 as the models were trained with.
    """
    rope: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        table = config.get(key) or {}
        if not isinstance(table, dict):
            raise CheckpointError(f"config.json: {key}: expected an object, got {table!r}")
        rope |= table
    unknown = sorted(key for key, value in rope.items() if key not in _KNOWN and value is not None)
    if unknown:
        raise CheckpointError(f"config.json: rope_parameters: expected known keys, got {unknown[0]!r}; this is not supported")
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    if rope.get("partial_rotary_factor") is None:
        rope["partial_rotary_factor"] = config.get("partial_rotary_factor") or 1.0
    if config.get("original_max_position_embeddings") is not None:  # Phi-3 keeps it outside, and it wins
        rope["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    kind = rope.get("rope_type") or rope.get("type") or "default"
    kind = (aliases or {}).get(kind, kind)
    if kind not in KINDS:
        raise CheckpointError(f"config.json: rope_type: expected one of {', '.join(KINDS)}, got {kind!r}")
    dim = int(head_dim * number(rope, "partial_rotary_factor"))
    if dim < 2 or dim % 2 or dim > head_dim:
        raise CheckpointError(
            f"config.json: partial_rotary_factor: expected an even part of head_dim {head_dim}, got {dim} of it"
        )
    plain = number(rope, "rope_theta") ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if kind == "linear":
        return Rope(_float32(plain / number(rope, "factor")))
    if kind == "llama3":
        return Rope(_float32(_llama3(plain, rope, positions)))
    if kind == "yarn":
        return _yarn(plain, rope, positions)
    if kind == "longrope":
        return _longrope(plain, rope, positions)
    return Rope(_float32(plain))  # "dynamic" changes nothing up to max_position_embeddings, and longer texts are refused


def _float32(x: F64) -> F64:
    return x.astype(np.float32).astype(np.float64)


def _old_length(rope: Mapping[str, Any], positions: int) -> float:
    key = "original_max_position_embeddings"
    return number(rope, key) if rope.get(key) is not None else float(positions)


def _llama3(inv_freq: F64, rope: Mapping[str, Any], positions: int) -> F64:
    """Slow rotations are stretched by factor, fast ones kept, those between blended."""
    factor, low, high = (number(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise CheckpointError(f"config.json: high_freq_factor: expected above low_freq_factor {low:g}, got {high:g}")
    turns = _old_length(rope, positions) * inv_freq / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    result: F64 = (1 - blend) * inv_freq / factor + blend * inv_freq
    return result


def _factor(rope: Mapping[str, Any], positions: int) -> float:
    return number(rope, "factor") if rope.get("factor") is not None else positions / _old_length(rope, positions)


def _yarn(inv_freq: F64, rope: Mapping[str, Any], positions: int) -> Rope:
    """Pairs that turn often within the old length are kept, those that turn rarely are stretched, a ramp between (eq. 23)."""
    dim, theta, old = 2 * len(inv_freq), number(rope, "rope_theta"), _old_length(rope, positions)
    factor = _factor(rope, positions)

    def pair_of(turns: float) -> float:
        return dim * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = (pair_of(rope.get(key) or default) for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0)))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low if high != low else 0.001), 0.0, 1.0)
    return Rope(_float32(inv_freq / factor * ramp + inv_freq * (1 - ramp)), _yarn_scale(rope, factor))


def _yarn_scale(rope: Mapping[str, Any], factor: float) -> float:
    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.get("attention_factor") is not None:
        return number(rope, "attention_factor")
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(number(rope, "mscale")) / scale(number(rope, "mscale_all_dim"))
    return scale(1.0)


def _longrope(inv_freq: F64, rope: Mapping[str, Any], positions: int) -> Rope:
    old, factor = _old_length(rope, positions), _factor(rope, positions)
    tables = []
    for key in ("short_factor", "long_factor"):
        values = rope.get(key)
        if not isinstance(values, list) or len(values) != len(inv_freq):
            raise CheckpointError(f"config.json: {key}: expected a list of {len(inv_freq)} numbers, got {str(values)[:40]}")
        tables.append(_float32(inv_freq / [number({key: value}, key) for value in values]))
    scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(old))
    if rope.get("attention_factor") is not None:
        scale = number(rope, "attention_factor")
    if positions <= old:
        return Rope(tables[0], scale)
    return Rope(tables[0], scale, tables[1], int(old))


def number(table: Mapping[str, Any], key: str) -> float:
    """A positive number of a config.json."""
    value = table.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
        raise CheckpointError(f"config.json: {key}: expected a positive number, got {value!r}")
    return float(value)
