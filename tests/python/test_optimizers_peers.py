"""The optimizers beside torch's, transformers' and bitsandbytes' (tests/golden/make_optimizer_golden.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import lora_c as lc
from lora_c import reference

# Copies: test_hostile_arguments.py releases every memoryview that it finds, and load_file gives views of one.
GOLDEN = {key: np.array(a) for key, a in load_file(Path(__file__).parents[1] / "golden" / "optimizers.safetensors").items()}
STEPS = 12
SHAPES: dict[str, tuple[int, ...]] = {"wide": (6, 40), "tall": (50, 4), "vector": (33,)}
CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "sgd": (lc.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd_plain": (lc.SGD, {"lr": 0.1}),
    "sgd_nesterov": (lc.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
    "sgd_dampening": (lc.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3}),
    "lion": (lc.Lion, {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}),
    "adafactor": (lc.Adafactor, {}),
    "adafactor_trainer": (lc.Adafactor, {"lr": 0.01, "scale_parameter": False, "relative_step": False}),
    "adafactor_all": (lc.Adafactor, {"beta1": 0.9, "weight_decay": 0.1, "warmup_init": True, "clip_threshold": 0.5}),
    "muon": (lc.Muon, {"lr": 0.02}),
    "muon_matched": (lc.Muon, {"lr": 0.02, "adjust_lr_fn": "match_rms_adamw", "nesterov": False, "momentum": 0.9}),
}


def arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("case", CASES)
def test_steps_are_the_peers(case: str) -> None:
    cls, options = CASES[case]
    params = {name: lc.Parameter(a) for name, a in arrays(0).items() if f"{case}.{name}" in GOLDEN}
    optimizer = cls(list(params.values()), **options)
    for step in range(1, STEPS + 1):
        gradients = arrays(step)
        for name, p in params.items():
            p.grad[...] = gradients[name]
        optimizer.step()
    assert len(params) == (2 if case.startswith("muon") else 3)
    for name, p in params.items():
        np.testing.assert_allclose(p.data, GOLDEN[f"{case}.{name}"], rtol=2e-5, atol=2e-6)


def test_8bit_steps_are_those_of_bitsandbytes() -> None:
    """p to rounding. A code may be the neighbour's where a moment lies within rounding of the middle: one in a thousand."""
    rng = np.random.default_rng(7)
    p = lc.Parameter(rng.standard_normal(5000).astype(np.float32))
    optimizer = lc.AdamW8bit([p], 1e-3, weight_decay=0.01)
    for _ in range(STEPS):
        p.grad[...] = rng.standard_normal(5000).astype(np.float32)
        optimizer.step()
    for key in ("m", "v"):
        away = np.abs(optimizer.moment(0, f"{key}_codes").astype(int) - GOLDEN[f"adamw8bit.{key}_codes"])
        assert away.max() <= 1
        assert (away > 0).mean() <= 1e-3
        np.testing.assert_allclose(optimizer.moment(0, f"{key}_absmax"), GOLDEN[f"adamw8bit.{key}_absmax"], rtol=1e-5)
    off = np.abs(p.data - GOLDEN["adamw8bit.p"])
    assert np.median(off) <= 1e-7
    assert (off > 1e-6).mean() <= 2e-3


@pytest.mark.parametrize("name", ["signed", "unsigned"])
def test_the_codes_are_those_of_bitsandbytes(name: str) -> None:
    """Bit for bit in one step that begins at zero, where a moment is a multiple of the gradient or its square."""
    code = reference.dynamic_map(name == "signed")
    np.testing.assert_allclose(code, GOLDEN[f"map.{name}"], rtol=2**-22)  # its last bits depend on the machine
    values = np.random.default_rng(3).standard_normal(2000).astype(np.float32)
    x = values if name == "signed" else values**2
    codes, absmax = reference.dynamic_encode(x, code)
    np.testing.assert_array_equal(codes, GOLDEN[f"encode.{name}.codes"])
    np.testing.assert_array_equal(absmax, GOLDEN[f"encode.{name}.absmax"])
    p = lc.Parameter(np.zeros(2000, np.float32))
    optimizer = lc.AdamW8bit([p], min_8bit_size=0, betas=(0.0, 0.0))
    p.grad[...] = values
    optimizer.step()
    key = "m" if name == "signed" else "v"
    np.testing.assert_array_equal(optimizer.moment(0, f"{key}_codes"), GOLDEN[f"encode.{name}.codes"])
    np.testing.assert_array_equal(optimizer.moment(0, f"{key}_absmax"), GOLDEN[f"encode.{name}.absmax"])
