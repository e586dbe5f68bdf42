"""Which layers of a model have a sliding window, and how wide it is, as a config.json says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError, shorten
from .config_values import size
from .table import Family

_FULL, _SLIDING = "full_attention", "sliding_attention"


def windows_of(config: Mapping[str, Any], family: Family, layers: int, positions: int) -> int | list[int]:
    """Attention windows: one number for all layers, or one for each; 0 for none."""
    local = local_layers(config, family, layers)
    if not any(local):
        return 0
    window = size(config, "sliding_window")
    window = 0 if window >= positions else window
    found = [window if is_local else 0 for is_local in local]
    return found[0] if len(set(found)) == 1 else found


def local_layers(config: Mapping[str, Any], family: Family, layers: int) -> list[bool]:
    """Whether each layer has a window.

    Raises
    ------
    CheckpointError
        layer_types and the keys of the window contradict each other.
    """
    given = _layer_types(config, family, layers)
    window = config.get("sliding_window")
    switched_off = family.windows in ("switch", "nope") and not config.get("use_sliding_window")
    if family.windows == "never":
        return [False] * layers
    if given is None:
        if window is None and family.windows in ("alternate", "pattern"):
            raise CheckpointError(
                "config.json: sliding_window: expected a number, as the family has layers with a window, got null; leave it "
                f"out, or set layer_types to {layers} times {_FULL!r}"
            )
        return [False] * layers if switched_off or window is None else _by_rule(config, family, layers)
    local = [kind == _SLIDING for kind in given]
    if any(local) and (switched_off or window is None):
        key = "sliding_window" if window is None else "use_sliding_window"
        raise CheckpointError(
            f"config.json: layer_types: expected {_FULL!r} alone with {key} {config.get(key)}, got {_SLIDING!r} too; "
            f"set {key}, or correct the list"
        )
    return local


def turning_layers(config: Mapping[str, Any], layers: int) -> list[bool]:
    """Whether each layer rotates its queries and keys (SmolLM3)."""
    given = config.get("no_rope_layers")
    if given is None:
        period = size(config, "no_rope_layer_interval", 4)
        return [(n + 1) % period != 0 for n in range(layers)]
    if not isinstance(given, list) or len(given) < layers or not all(value in (0, 1) for value in given):
        raise CheckpointError(f"config.json: no_rope_layers: expected {layers} of 0 and 1, got {str(given)[:60]}")
    return [bool(value) for value in given[:layers]]


def _layer_types(config: Mapping[str, Any], family: Family, layers: int) -> list[str] | None:
    """The layer_types of a config.json; None where rules of the family decide."""
    kinds = config.get("layer_types")
    if not kinds or "layer_types" not in family.keys:
        return None
    allowed = [_FULL, _SLIDING]
    if family.windows == "all":  # transformers does not read the list then: it may only repeat what sliding_window says
        allowed = allowed[:1] if config.get("sliding_window") is None else allowed[1:]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in allowed for kind in kinds):
        got = shorten(kinds) if isinstance(kinds, list) else repr(kinds)
        raise CheckpointError(f"config.json: layer_types: expected {layers} of {' and '.join(allowed)}, got {got}")
    return kinds


def _by_rule(config: Mapping[str, Any], family: Family, layers: int) -> list[bool]:
    if family.windows == "switch":
        return [n >= config["max_window_layers"] for n in range(layers)]
    if family.windows == "alternate":
        return [n % 2 == 0 for n in range(layers)]
    if family.windows == "pattern":
        period = size(config, "sliding_window_pattern")
        return [(n + 1) % period != 0 for n in range(layers)]
    if family.windows == "nope":
        return [not turns for turns in turning_layers(config, layers)]
    return [True] * layers
