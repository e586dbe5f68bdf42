"""What all of the mathematics computes with."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]


def f64(x: ArrayLike) -> F64:
    return np.asarray(x, dtype=np.float64)
