"""Merging an adapter into its base, and taking it out again."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from device_values import write_values

from lora_c._core import NF4Tensor
from lora_c.errors import AdapterError, ConfigError
from lora_c.model.model import Model
from lora_c.model.opening import load_model

IDS = np.arange(3, 20, dtype=np.int32)


def adapted(folder: Path, **options: object) -> Model:
    model = load_model(folder, **options)
    model.add_adapter(r=4, lora_alpha=8, rank_pattern={"q_proj": 2}, exclude_modules=["up_proj"])
    rng = np.random.default_rng(1)
    for parameter in model.trainable_parameters():
        write_values(parameter, rng.standard_normal(parameter.shape) * 0.1)
    return model


def formula(model: Model, name: str) -> np.ndarray:
    """W + s B A in float64."""
    weight, adapter = model.weights[name], model.adapters[name]
    base = weight.dequantize() if isinstance(weight, NF4Tensor) else weight
    return base.astype(np.float64) + adapter.scale * adapter.B.data.astype(np.float64) @ adapter.A.data.astype(np.float64)


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_float32_merge_equals_the_adapter(tiny_model_dir: Path, tmp_path: Path, quantize: str | None) -> None:
    model = adapted(tiny_model_dir, quantize=quantize)
    expected = model.decoder.logits(IDS)
    merged = model.merge(dtype="float32")
    assert np.abs(merged.decoder.logits(IDS) - expected).max() < 1e-4
    np.testing.assert_allclose(merged.weights["layers.1.q_proj"], formula(model, "layers.1.q_proj"), rtol=1e-6, atol=1e-7)
    assert np.array_equal(model.decoder.logits(IDS), expected) and merged.adapter_config is None
    merged.save(tmp_path / "m")
    assert np.array_equal(load_model(tmp_path / "m").decoder.logits(IDS), merged.decoder.logits(IDS))
    assert not load_model(tmp_path / "m").is_quantized


def test_bfloat16_merge_rounds_once(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model_dir)
    merged = model.merge(dtype="bfloat16")
    got = merged.weights["layers.0.down_proj"]
    exact = formula(model, "layers.0.down_proj")
    assert got.dtype == ml_dtypes.bfloat16
    assert np.all(np.abs(got.astype(np.float64) - exact) <= np.abs(exact) * (2.0**-8 + 1e-6) + 1e-7)
    merged.save(tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert np.array_equal(again.weights["layers.0.down_proj"].view(np.uint16), got.view(np.uint16))
    spread = np.abs(model.decoder.logits(IDS)).max()
    assert np.abs(again.decoder.logits(IDS) - model.decoder.logits(IDS)).max() < 0.05 * spread


@pytest.mark.parametrize("double_quant", [True, False])
def test_nf4_merge_quantizes_again(tiny_model_dir: Path, tmp_path: Path, double_quant: bool) -> None:
    model = adapted(tiny_model_dir, quantize="nf4", double_quant=double_quant, block_size=32)
    merged = model.merge(dtype="nf4")
    got = merged.weights["layers.0.q_proj"]
    assert isinstance(got, NF4Tensor) and (got.block_size, got.double_quant) == (32, double_quant)
    expected = NF4Tensor.quantize(model.merge().weights["layers.0.q_proj"], block_size=32, double_quant=double_quant)
    assert np.array_equal(got.dequantize(), expected.dequantize())
    assert merged.weights["layers.0.up_proj"] is model.weights["layers.0.up_proj"]
    merged.save(tmp_path / "m")
    assert np.array_equal(load_model(tmp_path / "m").decoder.logits(IDS), merged.decoder.logits(IDS))


def test_in_place_merge_and_back(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model_dir)
    other = model.merge()
    expected, before = model.decoder.logits(IDS), other.decoder.logits(IDS)
    original = model.weights["layers.0.q_proj"].copy()
    model.merge_adapter()
    assert np.abs(model.decoder.logits(IDS) - expected).max() < 1e-4
    with pytest.raises(AdapterError, match="a merged one"):
        model.merge_adapter()
    model.save(tmp_path / "m")
    assert np.abs(load_model(tmp_path / "m").decoder.logits(IDS) - expected).max() < 1e-4
    np.testing.assert_allclose(model.merge().decoder.logits(IDS), expected, atol=1e-4)
    model.unmerge_adapter()
    np.testing.assert_allclose(model.weights["layers.0.q_proj"], original, atol=1e-6)
    assert np.abs(model.decoder.logits(IDS) - expected).max() < 1e-4
    assert np.array_equal(other.decoder.logits(IDS), before)


def test_delete_while_merged_restores_the_base(tiny_model_dir: Path) -> None:
    base = load_model(tiny_model_dir).decoder.logits(IDS)
    model = adapted(tiny_model_dir)
    model.merge_adapter()
    model.delete_adapter()
    np.testing.assert_allclose(model.decoder.logits(IDS), base, atol=1e-4)


@pytest.mark.parametrize("options", [{"quantize": "nf4"}, {"dtype": "bfloat16"}])
def test_in_place_merge_of_rounded_bases_names_the_way_out(tiny_model_dir: Path, options: dict) -> None:
    model = adapted(tiny_model_dir, **options)
    expected = model.decoder.logits(IDS)
    with pytest.raises(AdapterError, match=r"use merge\(dtype=...\)"):
        model.merge_adapter()
    assert np.array_equal(model.decoder.logits(IDS), expected)


def test_refusals(tiny_model_dir: Path) -> None:
    model = adapted(tiny_model_dir)
    with pytest.raises(ConfigError, match="dtype: expected"):
        model.merge(dtype="float8")
    write_values(model.adapters["layers.1.o_proj"].B, np.inf, where=(3, 1))
    with pytest.raises(AdapterError, match="layers.1.self_attn.o_proj: expected finite numbers"):
        model.merge()


def test_golden_adapter_merges(stories: Path) -> None:
    golden = np.load(stories / "golden_lora_training.npz")
    model = load_model(stories)
    model.add_adapter(r=8, lora_alpha=16)
    for parameter in model.trainable_parameters():
        write_values(parameter, golden["final." + parameter.name])
    ids = golden["batches"][0, 0]
    assert np.abs(model.merge().decoder.logits(ids) - model.decoder.logits(ids)).max() < 1e-4
