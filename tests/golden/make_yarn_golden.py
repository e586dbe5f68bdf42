"""Make yarn_golden.json: the rotations that transformers makes for YaRN at sizes in use.

Needs torch and transformers (not needed by the tests themselves): python tests/golden/make_yarn_golden.py
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

CASES: list[dict[str, Any]] = [
    {"rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 32768},
    {"rope_theta": 10000.0, "factor": 16.0, "original_max_position_embeddings": 4096, "truncate": False},
    {"rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 2048, "beta_fast": 20.0, "beta_slow": 2.0},
]


def made(case: dict[str, Any]) -> dict[str, Any]:
    rope = {"rope_type": "yarn"} | case
    config = LlamaConfig(
        hidden_size=1024, num_attention_heads=8, max_position_embeddings=int(4 * case["original_max_position_embeddings"]),
        rope_parameters=rope,
    )  # fmt: skip
    inv_freq, scale = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    return {"rope": rope, "head_dim": 128, "inv_freq": [float(f"{x:.9g}") for x in inv_freq.tolist()], "scale": float(scale)}


if __name__ == "__main__":
    record = {"made_with": f"transformers {version('transformers')}", "cases": [made(case) for case in CASES]}
    Path(__file__).with_name("yarn_golden.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
