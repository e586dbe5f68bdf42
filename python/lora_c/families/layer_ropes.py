"""Which layer rotates its queries and keys with which table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError
from .attention_windows import local_layers, turning_layers
from .rope import Rope, rope_from, rope_of
from .rope_table import keys_without_effect, rope_table
from .table import Family

_LAYER_TYPES = ("full_attention", "sliding_attention")
_OLD_LENGTH = "original_max_position_embeddings"


def ropes_of(config: Mapping[str, Any], family: Family, layers: int, head_dim: int, positions: int) -> dict[str, Any]:
    """Arguments of `Decoder` about rotation."""
    if family.rope == "none":
        return {}
    if family.rope == "local":
        return _local_and_global(config, family, layers, head_dim, positions)
    _refuse_partial_rotation(config, family)
    config = _with_old_length(config, family)
    rope = rope_of(config, head_dim, positions, family.aliases, family.defaults.get("rope_theta", 10000.0))
    out: dict[str, Any] = {"rope_inv_freq": rope.inv_freq, "rope_scale": rope.scale}
    if rope.long_inv_freq is not None:
        out |= {"second_rope_inv_freq": rope.long_inv_freq, "second_rope_scale": rope.scale, "rope_switch": rope.switch}
    if family.rope == "nope":
        out["layer_rope"] = [0 if turns else -1 for turns in turning_layers(config, layers)]
    return out


def rope_keys_without_effect(config: Mapping[str, Any], family: Family) -> list[str]:
    """Keys of the RoPE tables that the stated kind of rotation does not read."""
    found = []
    for place in ("rope_scaling", "rope_parameters"):
        table = config.get(place) or {}
        if family.rope == "local" and place == "rope_parameters":
            for kind in _LAYER_TYPES:
                found += keys_without_effect(f"{place}.{kind}", table.get(kind), family.aliases)
        elif family.rope != "none":
            found += keys_without_effect(place, table, family.aliases)
    return found


def _refuse_partial_rotation(config: Mapping[str, Any], family: Family) -> None:
    if "partial_rotary_factor" in family.keys:
        return
    for place in ("rope_scaling", "rope_parameters"):
        table = config.get(place)
        part = table.get("partial_rotary_factor") if isinstance(table, dict) else None
        if part not in (None, 1):
            raise CheckpointError(
                f"config.json: {place}.partial_rotary_factor: expected nothing, got {str(part)[:60]!r}; this is not supported "
                f"for {family.architecture}"
            )


def _with_old_length(config: Mapping[str, Any], family: Family) -> Mapping[str, Any]:
    """Phi-3 has the length before stretching outside of its table, with a default that wins over the table in transformers."""
    default = family.defaults.get(_OLD_LENGTH)
    if default is None or config.get(_OLD_LENGTH) is not None:
        return config
    for place in ("rope_scaling", "rope_parameters"):
        table = config.get(place)
        inside = table.get(_OLD_LENGTH) if isinstance(table, dict) else None
        if inside not in (None, default):
            raise CheckpointError(
                f"config.json: {place}.{_OLD_LENGTH}: expected it outside of the table, where {family.architecture} has it "
                f"({default} where nothing is said), got {inside}"
            )
    return {**config, _OLD_LENGTH: default}


def _local_and_global(config: Mapping[str, Any], family: Family, layers: int, head_dim: int, positions: int) -> dict[str, Any]:
    """Gemma 3: layers with a window have a table of their own."""
    given = config.get("rope_parameters") or {}
    if not isinstance(given, dict) or not set(given) <= set(_LAYER_TYPES):
        got = ", ".join(sorted(map(str, given))) if isinstance(given, dict) else repr(given)
        raise CheckpointError(
            f"config.json: rope_parameters: expected one table each for {' and '.join(_LAYER_TYPES)}, got {got[:80]}"
        )
    wide = {
        "rope_scaling": config.get("rope_scaling") or None, "rope_parameters.full_attention": given.get("full_attention"),
    }  # fmt: skip
    narrow = {"rope_parameters.sliding_attention": given.get("sliding_attention")}
    tables: list[Rope] = []
    for places, key in ((wide, "rope_theta"), (narrow, "rope_local_base_freq")):
        table = rope_table(places, {"rope_theta": {key: config.get(key)}})
        if table["rope_type"] == "longrope" or table.get("partial_rotary_factor") not in (None, 1):
            raise CheckpointError(
                "config.json: rope_type: expected whole heads and no longrope for this family, got "
                f"{table['rope_type']!r} of {table.get('partial_rotary_factor', 1)}"
            )
        tables.append(rope_from(table, head_dim, positions, family.defaults[key]))
    return {
        "rope_inv_freq": tables[0].inv_freq, "rope_scale": tables[0].scale,
        "second_rope_inv_freq": tables[1].inv_freq, "second_rope_scale": tables[1].scale,
        "layer_rope": [int(is_local) for is_local in local_layers(config, family, layers)],
    }  # fmt: skip
