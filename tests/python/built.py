"""What the Makefile builds for tests."""

from __future__ import annotations

from pathlib import Path

import pytest

BUILT = Path(__file__).resolve().parents[2] / "build" / "release"


def built(name: str) -> Path:
    """Return a file of build/release; the test is skipped where it was not built."""
    path = BUILT / name
    if not path.is_file():
        pytest.skip(f"needs {path}, which `make check-cuda-c` builds")
    return path


def backend_library(name: str) -> Path:
    """The library of a device that tests build: "fake" or "shim"."""
    return built(f"liblora_c_{name}.so")
