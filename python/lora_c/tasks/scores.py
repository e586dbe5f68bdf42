"""Numbers over a set of examples, and how sure the difference between two of them is.

Every number here is a function of sums over the examples (a mean: of values and their count; perplexity: of losses and tokens;
BLEU: of counts), so that one of a set that is drawn anew needs the examples' own sums only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Score:
    """A number over examples.

    Shapes
    ------
    sums (n, k) float64: what is added over n examples; `of_sums` takes (k,).
    """

    sums: F64
    of_sums: Callable[[F64], float]

    @property
    def value(self) -> float:
        """The number over all examples."""
        return self.of_sums(self.sums.sum(axis=0))


def mean_score(values: Sequence[float]) -> Score:
    """The mean of one value for each example."""
    return ratio_score(values, np.ones(len(values)), lambda mean: mean)


def ratio_score(above: Sequence[float], below: Sequence[float] | F64, of_ratio: Callable[[float], float]) -> Score:
    """A function of one sum by another."""
    sums = np.stack([np.asarray(above, np.float64), np.asarray(below, np.float64)], axis=1)
    return Score(sums, lambda total: of_ratio(float(total[0] / total[1])))


@dataclass(frozen=True)
class Difference:
    """Between two scores of the same examples: `value`, and the interval that holds it with a probability of `level`."""

    value: float
    low: float
    high: float
    level: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0.0 or self.high < 0.0


def paired_difference(first: Score, second: Score, *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Difference:
    """Return second - first with its interval by the paired bootstrap.

    Sets of as many examples are drawn with replacement, the same for both, and the interval holds the middle of their
    differences (the percentile method).

    Parameters
    ----------
    first, second : Score
        Of the same examples in the same order.
    resamples : int
        Sets to draw, 2 or more.
    seed : int
        Of NumPy's Philox, of which the draws are a function.
    level : float
        Between 0 and 1.

    Raises
    ------
    ConfigError
        They are not of as many examples, or an option is beyond its bounds.

    Source
    ------
    Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13; paired as in Koehn 2004 (W04-3250).
    """
    n = len(first.sums)
    if n == 0 or len(second.sums) != n:
        raise ConfigError(f"second: expected a score of the {n} examples of the first, got one of {len(second.sums)}")
    if resamples < 2:
        raise ConfigError(f"resamples: expected 2 sets or more, got {resamples}")
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level: expected a probability between 0 and 1, got {level}")
    generator = np.random.Generator(np.random.Philox(key=[seed, 0]))
    differences = np.empty(resamples)
    for i in range(resamples):
        times = np.bincount(generator.integers(0, n, n), minlength=n).astype(np.float64)
        differences[i] = second.of_sums(times @ second.sums) - first.of_sums(times @ first.sums)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(differences, [tail, 1.0 - tail])
    return Difference(second.value - first.value, float(low), float(high), level)
