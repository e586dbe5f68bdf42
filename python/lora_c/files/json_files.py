"""JSON files that others wrote: what is not strict JSON is refused with the file's name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .os_errors import reason
from .regular_file import read_regular

MOST_BYTES = 256 << 20  # of a file that describes a model; the largest in use, indices of shards, have a few million


def read_json_object(path: Path, hint: str = "", most: int = MOST_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises
    ------
    CheckpointError
        There is no such file, it has more than `most` bytes, it is not JSON (`NaN` and `Infinity` are not), or a name is given
        twice in one object.
    """
    way_out = f"; {hint}" if hint else ""
    try:
        value = strict_json(read_regular(path, CheckpointError, most).decode("utf-8"))
    except CheckpointError as error:
        raise CheckpointError(f"{error}{way_out}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a JSON file, got: {reason(error)}{way_out}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}{way_out}")
    return value


def strict_json(text: str) -> Any:
    """Parse JSON; `ValueError` for numbers that are not finite and for a name that an object gives twice."""
    return json.loads(text, object_pairs_hook=unique_names, parse_constant=_refuse_constant, parse_float=_finite)


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file, for `object_pairs_hook`; `ValueError` for a name that occurs twice."""
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"a name that occurs twice, {name[:80]!r} ({str(result[name])[:40]} and {str(value)[:40]})")
        result[name] = value
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name}, which JSON does not have")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]}, which is beyond every finite number")
    return value
