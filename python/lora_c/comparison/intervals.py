"""The mean of a few seeds, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

# The 97.5 % quantile of Student's t by degrees of freedom, from 1; tabulated in any book of statistics.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110,
    2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Mean:
    """Of `n` values; `half` is half of the 95 % interval, None where one value says nothing of it."""

    value: float
    half: float | None
    n: int

    @property
    def low(self) -> float:
        """Where the interval begins."""
        return self.value - (self.half or 0.0)

    @property
    def high(self) -> float:
        """Where it ends."""
        return self.value + (self.half or 0.0)


def mean_of(values: Sequence[float]) -> Mean:
    """The mean with its 95 % interval by Student's t; beyond 30 degrees of freedom that of 30, which is a little wider.

    Raises
    ------
    ValueError
        There are no values.
    """
    if not values:
        raise ValueError("values: expected one or more, got none")
    if len(values) == 1:
        return Mean(float(values[0]), None, 1)
    quantile = _T[min(len(values) - 1, len(_T)) - 1]
    return Mean(fmean(values), quantile * stdev(values) / math.sqrt(len(values)), len(values))
