"""Options of `load_model` that cannot be, refused before anything is read."""

from __future__ import annotations

from typing import Any

from ..configs import NF4_BLOCK_SIZES, QUANT_TYPES
from ..errors import ConfigError
from .loading import DENSE_DTYPES


def check_load_options(quantize: Any, double_quant: Any, block_size: Any, dtype: Any, trainable: Any) -> None:
    """Check the values, and that they go together.

    Raises
    ------
    ConfigError
        Naming the option.
    """
    if quantize not in (None, *QUANT_TYPES):
        raise ConfigError(f"quantize: expected None or one of {', '.join(map(repr, QUANT_TYPES))}, got {quantize!r}")
    if block_size not in NF4_BLOCK_SIZES:
        raise ConfigError(f"block_size: expected one of {', '.join(map(str, NF4_BLOCK_SIZES))}, got {block_size!r}")
    if quantize == "q8_0" and (block_size, double_quant) != (64, True):
        raise ConfigError(
            "block_size, double_quant: expected none with quantize='q8_0', whose blocks have 32 weights and a float16 scale, "
            f"got {block_size} and {double_quant}; leave them out"
        )
    if dtype not in (None, *DENSE_DTYPES):
        raise ConfigError(f"dtype: expected None, 'float32' or 'bfloat16', got {dtype!r}")
    if trainable not in ("none", "full", "head"):
        raise ConfigError(f"trainable: expected 'none', 'full' or 'head', got {trainable!r}")
    if trainable == "full" and quantize:
        raise ConfigError(
            f"trainable: expected 'none' or 'head' with quantize={quantize!r}, got 'full'; quantized weights cannot be trained"
        )
