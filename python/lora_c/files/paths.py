"""Paths as people give them."""

from __future__ import annotations

import os
from typing import Any

from ..errors import ConfigError


def expand(path: Any, name: str = "path") -> str:
    """A path as a text, with `~` for the home folder; one that is there as it stands is that one.

    Raises
    ------
    ConfigError
        It is no path; `name` says of what.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        raise ConfigError(f"{name}: expected a path, got {type(path).__name__}") from None
    if not isinstance(text, str):
        raise ConfigError(f"{name}: expected a path as a text, got {type(text).__name__}")
    return text if not text.startswith("~") or os.path.lexists(text) else os.path.expanduser(text)
