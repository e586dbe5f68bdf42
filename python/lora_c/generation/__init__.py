"""From logits to answers: the choice of tokens, the loop over one sequence or many, the text of an answer."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from .._moved import name_of_old_module

    return name_of_old_module(__name__, name)
