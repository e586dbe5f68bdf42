"""Files as they are written and opened: atomically, aside, and what the system says when it refuses."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from .._moved import name_of_old_module

    return name_of_old_module(__name__, name)
