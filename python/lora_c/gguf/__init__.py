"""GGUF: llama.cpp's file format, and models in it, read and written."""

from __future__ import annotations

from typing import Any

from .models import write_model

__all__ = ["write_model"]


def __getattr__(name: str) -> Any:
    from .._moved import name_of_old_module

    return name_of_old_module(__name__, name)
