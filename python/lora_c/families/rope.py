"""Rotation frequencies: from the RoPE parameters of a config.json to tables for the decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from .config_values import number
from .rope_table import rope_table

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Rope:
    """One table. inv_freq (pairs that turn,): angle per position; scale multiplies cosine and sine.

    long_inv_freq: used instead for sequences of more than `switch` tokens (longrope).
    """

    inv_freq: F64
    scale: float = 1.0
    long_inv_freq: F64 | None = None
    switch: int = 0


def rope_of(
    config: Mapping[str, Any], head_dim: int, positions: int, aliases: Mapping[str, str] | None = None, theta: float = 10000.0
) -> Rope:
    """Return the table of a config.json.

    Parameters
    ----------
    positions : int
        max_position_embeddings.
    aliases : mapping, optional
        The family's own names of rope types.
    theta : float
        The base where nothing gives one.

    Raises
    ------
    CheckpointError
        The kind of scaling is not supported, or a number is missing or absurd, or two places contradict each other.

    Source
    ------
    RoFormer, arXiv:2104.09864; position interpolation, arXiv:2306.15595; YaRN, arXiv:2309.00071; LongRoPE, arXiv:2402.13753;
    the "llama3" rule of Llama 3.1. Values are rounded to float32 as the models were trained with.
    """
    outside = {
        key: {key: config.get(key)} for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    }  # fmt: skip
    table = rope_table({key: config.get(key) or None for key in ("rope_scaling", "rope_parameters")}, outside, aliases)
    return rope_from(table, head_dim, positions, theta)


def rope_from(rope: Mapping[str, Any], head_dim: int, positions: int, theta: float) -> Rope:
    """The frequencies of one table; theta holds where the table gives none.

    Raises
    ------
    CheckpointError
        The table's numbers fit no kind, or give frequencies that are not finite.
    """
    with np.errstate(all="ignore"):
        made = _table(rope, head_dim, positions, theta)
    if not all(np.isfinite(table).all() for table in (made.inv_freq, made.long_inv_freq) if table is not None):
        shown = {"rope_theta": theta} | {key: value for key, value in rope.items() if isinstance(value, (int, float))}
        raise CheckpointError(f"config.json: RoPE: expected numbers that give finite frequencies, got {str(shown)[:200]}")
    return made


def _table(rope: Mapping[str, Any], head_dim: int, positions: int, theta: float) -> Rope:
    rope = dict(rope)
    for key, value in (("rope_theta", theta), ("partial_rotary_factor", 1.0)):
        if rope.get(key) is None:
            rope[key] = value
    kind = rope["rope_type"]
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
