"""Accuracy, F1 and correlations against scikit-learn and SciPy (tests/golden/make_label_metrics.py)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_c.training import label_metrics

RECORDS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "label_metrics.json").read_text())
CASES = [(name, measure) for name, record in RECORDS.items() for measure in record["wanted"]]


@pytest.mark.parametrize(("name", "measure"), CASES)
def test_as_scikit_learn(name: str, measure: str) -> None:
    record = RECORDS[name]
    got = getattr(label_metrics, measure)(np.array(record["true"]), np.array(record["said"]))
    if record["wanted"][measure] is None:  # what SciPy calls NaN
        assert math.isnan(got)
    else:
        assert got == pytest.approx(record["wanted"][measure], rel=1e-12, abs=1e-15)


def test_one_value_has_no_correlation() -> None:
    assert math.isnan(label_metrics.pearson([1.0], [2.0])) and math.isnan(label_metrics.spearmanr([1.0], [2.0]))
