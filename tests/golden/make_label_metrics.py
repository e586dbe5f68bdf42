"""Makes tests/golden/label_metrics.json: measures of answers by scikit-learn and SciPy.

python tests/golden/make_label_metrics.py        (needs scikit-learn and scipy)
"""

import json
import warnings
from pathlib import Path

import numpy as np
import scipy.stats
from sklearn import metrics

rng = np.random.default_rng(7)
LABELS = {
    "two": (rng.integers(0, 2, 40), rng.integers(0, 2, 40)),
    "two_skewed": (np.array([0] * 18 + [1] * 2), np.array([0] * 17 + [1, 1, 0])),
    "never_found": (np.array([0, 1, 1, 0]), np.array([0, 0, 0, 0])),
    "none_there": (np.array([0, 0, 0]), np.array([0, 0, 0])),
    "perfect": (np.array([0, 1, 1]), np.array([0, 1, 1])),
    "four": (rng.integers(0, 4, 60), rng.integers(0, 4, 60)),
    "four_one_absent": (np.array([0, 1, 3, 3, 1, 0, 3]), np.array([0, 1, 3, 1, 1, 2, 3])),
    "one_sided": (np.array([2, 2, 1, 0]), np.array([2, 2, 2, 2])),
}
ROWS = {
    "rows": (rng.integers(0, 2, (25, 3)), rng.integers(0, 2, (25, 3))),
    "rows_empty_column": (np.array([[1, 0], [0, 0], [1, 0]]), np.array([[1, 0], [1, 0], [1, 0]])),
}
VALUES = {
    "values": (rng.normal(size=30), rng.normal(size=30)),
    "values_alike": (np.array([1.0, 2, 2, 3, 3, 3, -1]), np.array([0.5, 0.5, 2.5, 2.5, 7, 1, 1])),
    "values_line": (np.array([1.0, 2, 3]), np.array([10.0, 20, 30])),
    "values_flat": (np.array([1.0, 1, 1]), np.array([0.1, 0.2, 0.4])),
}


def single(true, said):
    binary = set(true.tolist() + said.tolist()) <= {0, 1}
    return {
        "accuracy": metrics.accuracy_score(true, said),
        **({"f1": metrics.f1_score(true, said, zero_division=0)} if binary else {}),
        "f1_macro": metrics.f1_score(true, said, average="macro", zero_division=0),
        "matthews_correlation": metrics.matthews_corrcoef(true, said),
    }


def rows(true, said):
    return {
        "accuracy": metrics.accuracy_score(true, said),
        "f1_micro": metrics.f1_score(true, said, average="micro", zero_division=0),
        "f1_macro": metrics.f1_score(true, said, average="macro", zero_division=0),
    }


def values(true, said):
    return {
        "mean_squared_error": metrics.mean_squared_error(true, said),
        "pearson": scipy.stats.pearsonr(true, said)[0],
        "spearmanr": scipy.stats.spearmanr(true, said)[0],
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    found = {}
    for cases, measure in ((LABELS, single), (ROWS, rows), (VALUES, values)):
        for name, (true, said) in cases.items():
            wanted = {key: None if np.isnan(value) else float(value) for key, value in measure(true, said).items()}
            found[name] = {"true": true.tolist(), "said": said.tolist(), "wanted": wanted}
    path = Path(__file__).parent / "label_metrics.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(len(found), "cases,", path.stat().st_size, "bytes")
