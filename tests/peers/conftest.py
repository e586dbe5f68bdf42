"""Fixtures of the round trips with other tools. They run in a virtual environment of their own: make check-peers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from peer_models import tiny_llama


@pytest.fixture
def llama_folder(tmp_path: Path) -> Callable[..., Path]:
    """Save a small random Llama as transformers does; keywords change its config."""

    def make(name: str = "base", dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
        tiny_llama(**changes).to(dtype).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make
