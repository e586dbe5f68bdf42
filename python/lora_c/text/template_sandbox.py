"""Where chat templates run: jinja2's immutable sandbox in the dialect of transformers, within `template_limits`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any


@lru_cache(maxsize=2)
def environment(marks: tuple[str, str] | None) -> Any:
    """Return the environment of templates; `marks` is written around {% generation %} ... {% endgeneration %}."""
    from .template_environment import make

    return make(marks)
