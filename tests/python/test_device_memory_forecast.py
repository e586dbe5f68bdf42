"""What is forecast of a training step against what it takes: the buffers of the CUDA plug-in, on its emulated driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from built import backend_library

WORKSPACE = 32 << 20  # cuBLASLt's, of every product, which would hide all else of a small model
SHARE = 0.9  # of the forecast that is taken, that aside. Less where a case says so: the memory of attention of short sequences
# depends on their lengths, of which only the number is known.

LORA: dict[str, Any] = {"r": 8}
NF4: dict[str, Any] = {"quantize": "nf4", "block_size": 32}
WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 352, "max_position_embeddings": 512}
FAST: dict[str, Any] = {"precision": "fast"}
EXACT: dict[str, Any] = {"precision": "exact"}

CASES: dict[str, dict[str, Any]] = {
    "exact": {"adapter": LORA, "decoder": EXACT, "load": NF4},
    "exact_float32": {"adapter": LORA, "decoder": EXACT},
    "fast": {"adapter": LORA, "decoder": FAST, "load": NF4},
    "fast_bfloat16": {"adapter": LORA, "decoder": FAST, "load": {"dtype": "bfloat16"}},
    "fast_float32": {"adapter": LORA, "decoder": FAST},
    "odd_rank": {"adapter": {"r": 5}, "decoder": FAST, "load": NF4},
    "wide_rank": {"adapter": {"r": 64}, "decoder": FAST, "load": NF4},
    "dropout_exact": {"adapter": LORA | {"lora_dropout": 0.1}, "decoder": EXACT, "load": NF4},
    "dropout_fast": {"adapter": LORA | {"lora_dropout": 0.1}, "decoder": FAST, "load": NF4},
    "dora_exact": {"adapter": LORA | {"use_dora": True}, "decoder": EXACT, "load": NF4},
    "dora_fast": {"adapter": LORA | {"use_dora": True}, "decoder": FAST, "load": NF4},
    "dora_dropout": {"adapter": LORA | {"use_dora": True, "lora_dropout": 0.1}, "decoder": FAST, "load": NF4},
    "biases": {"adapter": LORA | {"bias": "all"}, "decoder": FAST, "config": {"attention_bias": True}},
    "head": {"adapter": LORA | {"modules_to_save": ["lm_head"]}, "decoder": FAST, "load": NF4},
    "embedding": {"adapter": LORA | {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, "decoder": FAST},
    "ia3": {
        "kind": "ia3", "adapter": {"target_modules": ["q_proj", "o_proj", "up_proj", "down_proj"]},
        "decoder": FAST, "load": NF4,
    },
    "bottleneck": {"kind": "bottleneck", "adapter": {}, "decoder": FAST, "load": NF4},
    "prefix": {
        "kind": "prefix", "adapter": {"num_virtual_tokens": 3, "prefix_projection": True},
        "decoder": FAST, "load": NF4, "lengths": [70, 27],
    },
    "full_exact": {"load": {"trainable": "full"}, "decoder": EXACT},
    "full_fast": {"load": {"trainable": "full"}, "decoder": FAST},
    "head_dim_16": {
        "adapter": LORA,
        "decoder": FAST, "load": NF4, "config": {"head_dim": 16, "num_attention_heads": 8}, "lengths": [70, 16],
    },
    "head_dim_64": {
        "adapter": LORA,
        "decoder": FAST, "load": NF4, "config": {"head_dim": 64, "num_key_value_heads": 1}, "lengths": [70, 16],
    },
    "head_dim_128": {
        "adapter": LORA,
        "decoder": EXACT, "load": NF4, "config": {"head_dim": 128, "num_attention_heads": 2}, "lengths": [60, 50],
    },
    "recompute": {"adapter": LORA, "decoder": FAST | {"recompute": "layer"}, "load": NF4},
    "attention_again": {"adapter": LORA, "decoder": FAST | {"recompute": "attention"}, "load": NF4},
    "bfloat16_activations": {"adapter": LORA, "decoder": FAST | {"activation_dtype": "bfloat16"}, "load": NF4},
    "few_tokens": {"adapter": LORA, "decoder": FAST, "load": NF4, "lengths": [12], "share": 0.6},
    "few_tokens_dropout": {
        "adapter": LORA | {"lora_dropout": 0.1}, "decoder": EXACT, "load": NF4, "lengths": [12], "share": 0.6
    },
    "short_sequences": {"adapter": LORA, "decoder": FAST, "load": NF4, "lengths": [5] * 12, "share": 0.25},
    "long": {"adapter": LORA, "decoder": FAST, "load": NF4, "lengths": [300], "share": 0.5},
    "vocabulary": {"adapter": LORA, "decoder": FAST, "load": NF4, "config": {"vocab_size": 5000}},
    "no_momentum": {"adapter": LORA, "decoder": FAST, "optim": "sgd"},
}  # fmt: skip


@pytest.fixture
def measure(make_model: Callable[..., Path]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    environment = os.environ | {"LORA_C_BACKENDS": str(backend_library("shim"))}
    environment.pop("LORA_C_DEVICE", None)

    def run(case: dict[str, Any]) -> dict[str, Any]:
        folder = make_model(**WIDE | case.get("config", {}))
        given = {"device": "shim", "lengths": [70, 30]} | case | {"folder": str(folder)}
        script = Path(__file__).with_name("device_memory_pass.py")
        done = subprocess.run(
            [sys.executable, str(script), json.dumps(given)], capture_output=True, text=True, env=environment, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.parametrize("name", CASES)
def test_a_pass_takes_what_is_forecast(measure: Callable[[dict[str, Any]], dict[str, Any]], name: str) -> None:
    found = measure(CASES[name])
    plan, took = found["plan"], found["took"]
    stands = found["without_values"]  # but for the rounding of arrays, and the tables that each matrix brings
    assert stands | {"base": 0} == plan | {"base": 0} and plan["base"] <= stands["base"] * 1.2 + 64 * 2048
    assert took["activations"] == plan["activations"]
    assert (took["parameters"], took["gradients"]) == (plan["parameters"], plan["gradients"])
    assert took["base"] == plan["base"] and found["optimizer"] == plan["optimizer"]
    assert took["scratch"] <= plan["scratch"]
    assert took["scratch"] - WORKSPACE >= CASES[name].get("share", SHARE) * (plan["scratch"] - WORKSPACE)
