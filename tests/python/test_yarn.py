"""YaRN's rotations at sizes in use are those of transformers (tests/golden/make_yarn_golden.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_c.families.rope import rope_from

RECORD = json.loads((Path(__file__).parents[1] / "golden/yarn_golden.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", RECORD["cases"], ids=lambda case: f"{case['rope']['factor']:g}")
def test_rotations_and_scale_are_those_of_transformers(case: dict[str, Any]) -> None:
    rope = case["rope"]
    positions = int(rope["factor"] * rope["original_max_position_embeddings"])
    found = rope_from(rope, case["head_dim"], positions, rope["rope_theta"])
    # float32 there: a power of theta and a ramp, each with a rounding or two
    np.testing.assert_allclose(found.inv_freq, case["inv_freq"], rtol=1e-6)
    assert found.scale == pytest.approx(case["scale"], rel=1e-6)
