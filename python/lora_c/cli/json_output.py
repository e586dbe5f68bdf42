"""What ``--json`` prints: one object in one line on standard output, keys in snake_case, numbers as numbers."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def print_json(values: dict[str, Any]) -> None:
    """Print an object; what JSON has no number for (NaN, infinity) is null."""
    click.echo(json.dumps(_plain(values), ensure_ascii=False, allow_nan=False))


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a file, or of all files in a folder."""
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return _plain(value.item()) if hasattr(value, "item") else str(value)
