"""Quantizing on a device with the CPU's bytes, and the memory that a device says it has (fake_device, cuda/shim)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lora_c as lc
from lora_c import _core
from lora_c.configs.quantization import FOUR_BIT
from lora_c.model.device_list import memory_of
from lora_c.training.memory import choose_recompute
from lora_c.weights.quantization import Quantization

PARTS = ("codes", "absmax", "absmax_codes", "nested_absmax", "nested_offset", "nested_map")
GIB = 2**30


def assert_same(got: Any, expected: Any) -> None:
    assert repr(got) == repr(expected)
    for part in PARTS:
        np.testing.assert_array_equal(getattr(got, part), getattr(expected, part), err_msg=part)


@pytest.mark.parametrize("kind", sorted(FOUR_BIT))
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_bytes_are_those_of_the_cpu(device: str, kind: str, dtype: Any) -> None:
    kept = _core.memory_report(device)["scratch"]["live"]
    rng = np.random.default_rng(1)
    for shape, block_size in (((1, 1), 64), ((3, 67), 32), ((40, 129), 64), ((5, 4099), 4096)):
        w = (rng.standard_normal(shape) * 0.05).astype(dtype)
        w.ravel()[: w.size // 3] = 0
        for double_quant in (False, True):
            options: dict[str, Any] = dict(block_size=block_size, double_quant=double_quant, quant_type=kind)
            before = _core.transfers(device)
            got = lc.NF4Tensor.quantize(w, **options, device=device)
            assert _core.transfers(device)["uploaded_bytes"] - before["uploaded_bytes"] == w.nbytes
            assert_same(got, lc.NF4Tensor.quantize(w, **options))
            assert isinstance(got.codes, np.ndarray)
    left = _core.memory_report(device)["scratch"]["live"] - kept
    assert left <= 2**16  # lists that a device may keep; the matrix is gone


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_in_the_words_of_the_cpu(device: str, value: float) -> None:
    for at, dtype in ((0, np.float32), (130, np.float16), (398, ml_dtypes.bfloat16)):
        w = np.ones((7, 57), dtype)
        w.ravel()[[at, 398]] = value
        with pytest.raises(ValueError) as expected:
            lc.NF4Tensor.quantize(w)
        with pytest.raises(ValueError) as got:
            lc.NF4Tensor.quantize(w, device=device)
        assert str(got.value) == str(expected.value) and f"index {at} " in str(got.value)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="device: expected one of cpu"):
        lc.NF4Tensor.quantize(np.ones((2, 2), np.float32), device="abacus")


@pytest.mark.parametrize("kind", sorted(FOUR_BIT))
def test_a_model_is_quantized_on_its_device(
    make_model: Callable[..., Path], device: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, used = make_model(), []
    expected = lc.load_model(folder, progress=False, quantize=kind)
    quantize = Quantization.quantize
    monkeypatch.setattr(Quantization, "quantize", lambda self, w, on="cpu": used.append(on) or quantize(self, w, on))
    model = lc.load_model(folder, progress=False, quantize=kind, device=device)
    assert used and set(used) == {device}
    for name, weight in expected.weights.items():
        if isinstance(weight, lc.NF4Tensor):
            assert_same(model.weights[name], weight)


def test_a_damaged_model_is_refused_on_a_device(tiny: Any, tmp_path: Path, device: str) -> None:
    tensors = tiny.tensors(tiny.config, np.float32)
    tensors["model.layers.0.mlp.up_proj.weight"][1, 2] = np.nan
    folder = tiny.write(tmp_path / "damaged", tiny.config, tensors)
    with pytest.raises(lc.CheckpointError, match="up_proj.weight: expected finite numbers, got nan at index"):
        lc.load_model(folder, progress=False, quantize="nf4", device=device)


# --- memory ---


def test_a_device_says_what_memory_it_has(device: str) -> None:
    info = _core.memory_info(device)
    assert info["total"] == {"fake": 4 * GIB, "shim": 8 * GIB}[device]
    assert info["free"] is not None and 0 < info["free"] <= info["total"]
    if device == "fake":
        parameter = lc.Parameter(np.ones(2**18, np.float32), device=device, requires_grad=False)
        assert _core.memory_info(device)["free"] == info["free"] - 2**20
        del parameter
        assert _core.memory_info(device) == info


def test_the_cpu_says_what_memory_it_has() -> None:
    info, left = _core.memory_info(), _core.memory_left()
    assert info["total"] is None or (info["free"] is not None and 0 < info["free"] <= info["total"])
    assert left is None or abs(left - (info["free"] or 0)) < left  # other processes take and give meanwhile
    assert _core.memory_info("cpu")["total"] == info["total"]


def test_recompute_auto_asks_the_device(make_model: Callable[..., Path], fake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lc.load_model(make_model(), progress=False, device=fake)
    model.add_adapter(r=4)
    assert choose_recompute(model, 256, None) == "none"
    asked: list[str] = []
    monkeypatch.setattr(_core, "memory_info", lambda device: asked.append(device) or {"free": 1000, "total": 2000})
    assert choose_recompute(model, 256, None) == "layer" and asked == [fake]
    monkeypatch.setattr(_core, "memory_info", lambda device: {"free": None, "total": None})
    assert choose_recompute(model, 256, None) == "none"


def test_devices_are_listed_with_their_memory(device: str) -> None:
    environment = {**os.environ, "COLUMNS": "120"}
    command = [sys.executable, "-m", "lora_c", "devices"]
    found = json.loads(subprocess.run([*command, "--json"], env=environment, capture_output=True, check=True).stdout)[
        "devices"
    ]
    memory = {entry["name"]: entry["memory"] for entry in found}
    total = {"fake": 4, "shim": 8}[device]
    assert memory[device] == {"free": total * GIB, "total": total * GIB} and memory["cpu"]["total"] > 0
    assert memory.get("fake:broken") is None
    text = subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout
    assert f"{total}.0 of {total}.0 GiB free" in text


def test_a_device_that_does_not_open_has_no_memory() -> None:
    assert memory_of(lc.Device("abacus", "beads")) is None
    assert memory_of(lc.Device("cpu", "", "a reason")) is None
