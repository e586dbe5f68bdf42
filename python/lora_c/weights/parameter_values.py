"""Writing the values of parameters, on whichever device they lie.

Reading is `parameter.data` everywhere: a view where the parameter lies in the memory of the CPU, a copy where it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import Parameter

META = "meta"  # the device whose arrays have a shape and no values; "meta:8.6": one that forecasts a GPU


def is_meta(device: str) -> bool:
    """Whether arrays there have no values."""
    return device.partition(":")[0] == META


def set_values(parameter: Parameter, array: NDArray[Any]) -> None:
    """Set all values, rounded to float32 where they are of another type; on the CPU without a copy in between."""
    if is_meta(parameter.device):
        return
    if parameter.device == "cpu":
        parameter.data[...] = array
    else:
        parameter.write(np.ascontiguousarray(array, np.float32))


def set_rows(parameter: Parameter, rows: Sequence[int], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Set some rows of a matrix, and return all of its values."""
    whole = parameter.data
    if parameter.device != "cpu":
        whole = whole.copy()
    whole[rows] = values
    if parameter.device != "cpu":
        parameter.write(whole)
    return whole
