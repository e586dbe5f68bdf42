"""Values on any device: written into parameters, and compared where a device adds in an order of its own.

Reading is `parameter.data` everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lora_c as lc

SAME_BITS = ("cpu", "fake")  # devices on which what is added later has the bits of what is added at once
ROUNDING = 2e-5  # float32 sums in another order, by the largest result: as in tests/c/devices.c


def narrow_dtypes(device: str) -> tuple[str, ...]:
    """Of activations, besides float32."""
    return ("bfloat16", "int8") if device == "cpu" else ("bfloat16",)


def skip_where_lacking(device: str, activation_dtype: str) -> None:
    if activation_dtype not in ("float32", *narrow_dtypes(device)):
        pytest.skip(f"no activations in {activation_dtype} on device {device}")


def write_values(parameter: lc.Parameter, values: Any, where: Any = ...) -> None:
    """What `parameter.data[where] = values` does where the data is a view, and not a copy of what lies on another device."""
    whole = parameter.read()
    whole[where] = values
    parameter.write(whole)


def is_same(device: str, got: Any, expected: Any) -> bool:
    """Whether two ways to the same numbers agree: in every bit where a device has one order of sums, else to its rounding."""
    got, expected = np.asarray(got), np.asarray(expected)
    if device in SAME_BITS:
        return np.array_equal(got, expected)
    return got.shape == expected.shape and bool(np.abs(got - expected).max() <= ROUNDING * np.abs(expected).max())
