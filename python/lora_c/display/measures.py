"""What an evaluation has measured besides the loss, in a record of a run."""

from __future__ import annotations

from typing import Any


def measures_of(record: dict[str, Any]) -> dict[str, float]:
    """The measures of a record of an evaluation by name; a language model has none."""
    found = {name.removeprefix("eval_"): value for name, value in record.items() if name.startswith("eval_")}
    return {name: value for name, value in found.items() if name != "loss" and isinstance(value, float)}


def measures_text(record: dict[str, Any]) -> str:
    """The measures to stand behind the loss in a line."""
    return "".join(f"  {name} {value:.4f}" for name, value in measures_of(record).items())
