"""Model families as data, and what a config.json says."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from .._moved import name_of_old_module

    return name_of_old_module(__name__, name)
