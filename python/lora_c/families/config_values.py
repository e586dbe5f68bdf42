"""Single values of a config.json, checked by name."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError


def size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise CheckpointError(f"config.json: {key}: expected a positive number, got nothing; is this a model folder?")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31 - 1:
        raise CheckpointError(f"config.json: {key}: expected a positive number below 2^31 - 1, got {value!r}")
    return value


def number(table: Mapping[str, Any], key: str) -> float:
    """A positive finite number."""
    value = table.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
        raise CheckpointError(f"config.json: {key}: expected a positive number, got {value!r}")
    return float(value)


def same(one: Any, other: Any) -> bool:
    """Whether two values of a config.json say the same: 1 and 1.0 do, 1 and true do not."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def agreed(places: Mapping[str, Any], way_out: str = "keep the one that the weights were trained with") -> Any:
    """The value that several places give, None where none does; places that differ are refused with both values."""
    given = {place: value for place, value in places.items() if value is not None}
    first = next(iter(given), "")
    for place, value in given.items():
        if not same(value, given[first]):
            wanted, got = str(given[first])[:60], str(value)[:60]
            raise CheckpointError(f"config.json: {place}: expected the same as {first} ({wanted}), got {got}; {way_out}")
    return given.get(first)
