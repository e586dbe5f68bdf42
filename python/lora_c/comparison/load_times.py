"""Seconds to load a base from each type of file, as it is and quantized while it is read."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.opening import load_model

if TYPE_CHECKING:
    from ..model.model import Model

TYPES = ("float32", "float16", "bfloat16")
_TIMES = 3  # the least is kept: the file is in memory then


def measure_loading(path: str, folder: Path) -> dict[str, Any]:
    """By type of the file: its bytes, and the seconds to load it as it is and in NF4 with double quantization.

    Parameters
    ----------
    folder : Path
        For copies of the base, which are removed.
    """
    found = {}
    for dtype in TYPES:
        copy = folder / dtype
        if copy.exists():
            shutil.rmtree(copy)  # of a call that was ended
        model: Model = load_model(path, progress=False)
        model.save(copy, dtype=dtype)  # type: ignore[arg-type]
        del model
        size = sum(file.stat().st_size for file in copy.rglob("*.safetensors"))
        found[dtype] = {"bytes": size, "seconds": _seconds(copy), "quantize_seconds": _seconds(copy, quantize="nf4")}
        shutil.rmtree(copy)
    return found


def _seconds(path: Path, **options: Any) -> float:
    taken = []
    for _ in range(_TIMES):
        begin = time.perf_counter()
        load_model(path, progress=False, **options)
        taken.append(time.perf_counter() - begin)
    return min(taken)
