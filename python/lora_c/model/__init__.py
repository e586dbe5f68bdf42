"""A model in memory: loaded, adapted, merged, measured and saved."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from .._moved import name_of_old_module

    return name_of_old_module(__name__, name)
