"""How well a classifier's answers agree with the labels: the measures of scikit-learn and SciPy, by the same definitions.

Source   scikit-learn, user guide, 3.4.4 (classification metrics): accuracy_score, f1_score (zero_division 0),
         matthews_corrcoef; SciPy: pearsonr, spearmanr (equal values share the mean of their ranks)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]


def accuracy(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Return the share of answers that are right; of rows, with several labels each, the share of those right whole."""
    same = np.asarray(labels) == np.asarray(predicted)
    return float(same.reshape(len(same), -1).all(axis=1).mean())


def f1(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Return the F1 of the label 1 among 0 and 1; 0 where nothing of it is found."""
    true, said = np.asarray(labels) == 1, np.asarray(predicted) == 1
    both, either = int((true & said).sum()), int(true.sum()) + int(said.sum())
    return 2.0 * both / either if either else 0.0


def f1_macro(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Return the mean F1 of the labels that occur in either; of rows (n, num_labels) of 0 and 1 the mean over all columns."""
    true, said = np.asarray(labels), np.asarray(predicted)
    if true.ndim == 2:
        return float(np.mean([f1(true[:, i], said[:, i]) for i in range(true.shape[1])]))
    return float(np.mean([f1(true == name, said == name) for name in np.union1d(true, said)]))


def f1_micro(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Return the F1 of all entries of rows of 0 and 1 together."""
    return f1(np.asarray(labels).reshape(-1), np.asarray(predicted).reshape(-1))


def matthews_correlation(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Return Matthews' correlation of any number of labels, 0 where one side says the same throughout.

    Source
    ------
    Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient (2004), eq. 8.
    """
    given, found = np.asarray(labels), np.asarray(predicted)
    names = np.union1d(given, found)
    true = np.array([(given == name).sum() for name in names], np.float64)
    said = np.array([(found == name).sum() for name in names], np.float64)
    n, right = float(len(given)), float((given == found).sum())
    over = (n * n - said @ said) * (n * n - true @ true)
    return float((right * n - true @ said) / math.sqrt(over)) if over > 0 else 0.0


def pearson(values: ArrayLike, predicted: ArrayLike) -> float:
    """Return Pearson's correlation; NaN where one side is the same throughout, or there is one value alone."""
    a, b = _centred(values), _centred(predicted)
    over = math.sqrt(float(a @ a) * float(b @ b))
    return float(np.clip(a @ b / over, -1, 1)) if over > 0 else math.nan


def spearmanr(values: ArrayLike, predicted: ArrayLike) -> float:
    """Return Spearman's correlation: Pearson's of the ranks."""
    return pearson(_ranks(values), _ranks(predicted))


def mean_squared_error(values: ArrayLike, predicted: ArrayLike) -> float:
    """Return the mean of the squared differences."""
    return float(np.mean((np.asarray(values, np.float64) - np.asarray(predicted, np.float64)) ** 2))


def _centred(values: Any) -> F64:
    array = np.asarray(values, np.float64).reshape(-1)
    return array - array.mean() if np.ptp(array) > 0 else np.zeros_like(array)


def _ranks(values: Any) -> F64:
    """Ranks from 1 on; equal values share the mean of theirs."""
    array = np.asarray(values, np.float64).reshape(-1)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse.reshape(-1)]
