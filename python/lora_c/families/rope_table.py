"""What a config.json says about RoPE in its several places and spellings, as one table.

transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 `rope_parameters`; files hold both after some tools. They
may repeat each other; where they do not say the same, both are named and neither is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError
from .config_values import agreed

KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
_ALWAYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"}
_STRETCHED = {"factor", "original_max_position_embeddings", "attention_factor"}
_READ = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "yarn": _STRETCHED | {"beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    "longrope": _STRETCHED | {"short_factor", "long_factor"},
}  # fmt: skip
_KNOWN = _ALWAYS.union(*_READ.values())


def rope_table(
    tables: Mapping[str, Any], outside: Mapping[str, Mapping[str, Any]], aliases: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the one table that several places give.

    Parameters
    ----------
    tables : mapping
        Place to the object that stands there, or None.
    outside : mapping
        Key to the values that stand outside of tables, by place.
    aliases : mapping, optional
        The family's own names of rope types.

    Raises
    ------
    CheckpointError
        Two places say different things, or a table holds what no kind of rotation here has.
    """
    checked = {place: _checked(place, table, aliases or {}) for place, table in tables.items() if table is not None}
    keys = list(dict.fromkeys(key for table in checked.values() for key in table)) + list(outside)
    merged = {}
    for key in dict.fromkeys(keys):
        inside = {f"{place}.{key}": table.get(key) for place, table in checked.items()}
        merged[key] = agreed({**outside.get(key, {}), **inside})
    kind = merged.get("rope_type") or "default"
    if kind not in KINDS:
        raise CheckpointError(f"config.json: rope_type: expected one of {', '.join(KINDS)}, got {kind!r}")
    return merged | {"rope_type": kind}


def keys_without_effect(place: str, table: Any, aliases: Mapping[str, str]) -> list[str]:
    """Keys of a table that its kind of rotation does not read."""
    if not isinstance(table, dict):
        return []
    kind = _checked(place, table, aliases).get("rope_type") or "default"
    read = _ALWAYS | _READ.get(kind, set())
    return [f"{place}.{key} (rope_type {kind})" for key, value in table.items() if key not in read and value is not None]


def _checked(place: str, table: Any, aliases: Mapping[str, str]) -> dict[str, Any]:
    """The table with its kind under the name of today."""
    if not isinstance(table, dict):
        raise CheckpointError(f"config.json: {place}: expected an object, got {table!r}")
    for key, value in table.items():
        if key not in _KNOWN and value not in (None, False):  # a table holds nothing but mathematics
            raise CheckpointError(
                f"config.json: {place}: expected known keys, got {key!r} ({str(value)[:40]}); this is not supported"
            )
    names = {f"{place}.{key}": table.get(key) for key in ("rope_type", "type")}
    kind = agreed({label: aliases.get(name, name) if isinstance(name, str) else name for label, name in names.items()})
    rest = {key: value for key, value in table.items() if key not in ("rope_type", "type")}
    return rest if kind is None else {"rope_type": kind} | rest
