"""Start values of adapters: those that keep the base, and those that split it (PiSSA, OLoRA, LoftQ)."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from device_values import write_values

from lora_c._core import NF4Tensor
from lora_c.adapters import find_targets, init_adapter
from lora_c.configs import LoraConfig
from lora_c.errors import AdapterError, ConfigError
from lora_c.inspection import inspect_path
from lora_c.model.model import Model
from lora_c.model.opening import load_model

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"
RECORD = np.load(GOLDEN / "golden.npz")
IDS = RECORD["ids"].astype(np.int32)
SPLIT = ["pissa", "pissa_niter_6", "olora", "loftq"]


def product(model: Model, name: str) -> np.ndarray:
    adapter = model.adapters[name]
    return adapter.scale * adapter.B.data.astype(np.float64) @ adapter.A.data.astype(np.float64)


def move(model: Model) -> None:
    rng = np.random.default_rng(2)
    for parameter in model.trainable_parameters():
        write_values(parameter, parameter.data + 0.05 * rng.standard_normal(parameter.shape))


def error(model: Model, other: np.ndarray) -> float:
    return float(np.abs(model.decoder.logits(IDS) - other).max())


@pytest.mark.parametrize("kind", [False, "orthogonal"])
def test_starts_that_draw_both_matrices(kind: object) -> None:
    model = load_model(GOLDEN / "tied")
    target = find_targets(LoraConfig(r=4, target_modules=["up_proj"]), model.architecture)[0]
    a, b = init_adapter(target, LoraConfig(r=4, init_lora_weights=kind))
    assert a.shape == (4, 24) and b.shape == (36, 4) and a.any() and b.any()
    size = np.abs(b @ a).max()
    assert size < 1e-7 if kind == "orthogonal" else size > 1e-3
    if kind is False:
        assert np.abs(b).max() <= 0.5 and np.abs(a).max() <= 1 / np.sqrt(24)
    else:
        with pytest.raises(ConfigError, match="even rank"):
            init_adapter(target.__class__(target.spec, 3, 1.0), LoraConfig(r=3, init_lora_weights=kind))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pissa", {"r": 3, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}),
        ("olora", {"r": 2, "lora_alpha": 6, "use_rslora": True, "target_modules": ["o_proj", "up_proj"]}),
    ],
)
def test_principal_part_is_that_of_peft(name: str, options: dict) -> None:
    model = load_model(GOLDEN / ("tied" if name == "pissa" else "biased"))
    base = model.decoder.logits(IDS)
    model.add_adapter(init_lora_weights=name, **options)
    assert error(model, base) < 1e-4
    for key in RECORD.files:
        if key.startswith(f"{name}.start."):
            module = key.removeprefix(f"{name}.start.")
            decoder_name = next(n for n, layer in model.adapters.items() if layer.module == module)
            # two float32 decompositions part by u * s_1 / (s_r - s_{r+1}), about 1e-5 here, in units of s_1
            np.testing.assert_allclose(product(model, decoder_name), RECORD[key], atol=2e-5)
            residual = model.adapter.base[decoder_name]
            np.testing.assert_allclose(residual, model.weights[decoder_name] - product(model, decoder_name), atol=1e-6)


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_adapters_that_peft_converted(name: str) -> None:
    model = load_model(GOLDEN / ("tied" if name == "pissa" else "biased"))
    model.load_adapter(GOLDEN / name)
    assert error(model, RECORD[f"{name}.logits"]) < 1e-5


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("kind", SPLIT[:3])
def test_a_dense_split_is_saved_for_the_original_base(kind: str, dtype: str | None, tmp_path: Path) -> None:
    model = load_model(GOLDEN / "tied", dtype=dtype)
    base = model.decoder.logits(IDS)
    model.add_adapter(r=4, lora_alpha=6, rank_pattern={"k_proj": 2}, init_lora_weights=kind)
    tolerance = 1e-4 if dtype is None else 0.05 * np.abs(base).max()  # a bfloat16 residual rounds W - s B A
    assert error(model, base) < tolerance
    move(model)
    moved = model.decoder.logits(IDS)
    assert np.abs(moved - base).max() > 0.1
    model.save_adapter(tmp_path / "a")
    assert not (tmp_path / "a" / "base_model").exists()
    other = load_model(GOLDEN / "tied", dtype=dtype)
    other.load_adapter(tmp_path / "a")
    assert error(other, moved) < tolerance
    assert other.adapter_config.r == 8 and other.adapters["layers.0.k_proj"].A.shape[0] == 4
    model.delete_adapter()
    assert np.array_equal(model.decoder.logits(IDS), base)


OWN_BASE = [({"init_lora_weights": kind}, "nf4") for kind in SPLIT]
OWN_BASE += [({"init_lora_weights": "pissa", "use_dora": True}, None), ({"init_lora_weights": "loftq"}, None)]


@pytest.mark.parametrize(("options", "quantize"), OWN_BASE)
def test_a_split_that_no_other_base_fits_is_saved_with_its_base(options: dict, quantize: str | None, tmp_path: Path) -> None:
    model = load_model(GOLDEN / "tied", quantize=quantize, block_size=32)
    base = model.decoder.logits(IDS)
    model.add_adapter(r=4, lora_alpha=8, **options)
    move(model)
    moved = model.decoder.logits(IDS)
    model.save_adapter(tmp_path / "a")
    other = load_model(GOLDEN / "tied", quantize=quantize, block_size=32)
    other.load_adapter(tmp_path / "a")
    assert error(other, moved) < 1e-5
    other.save_adapter(tmp_path / "b")
    third = load_model(GOLDEN / "tied", quantize=quantize, block_size=32)
    third.load_adapter(tmp_path / "b")
    assert error(third, moved) < 1e-5
    assert error(other.merge(), moved) < 1e-4
    other.set_adapter(None)
    assert np.array_equal(other.decoder.logits(IDS), base)
    plain = load_model(tmp_path / "a" / "base_model")
    assert np.array_equal(plain.decoder.logits(IDS), load_base_alone(model))


def test_an_adapter_without_the_base_it_was_saved_with_is_refused(tmp_path: Path) -> None:
    model = load_model(GOLDEN / "tied")
    model.add_adapter(r=4, init_lora_weights="loftq")
    model.save_adapter(tmp_path / "a")
    for file in (tmp_path / "a" / "base_model").iterdir():
        file.unlink()
    with pytest.raises(AdapterError, match="base_model: expected the base that the adapter was trained on .*; copy the whole"):
        load_model(GOLDEN / "tied").load_adapter(tmp_path / "a")
    assert not inspect_path(tmp_path / "a").usable


def load_base_alone(model: Model) -> np.ndarray:
    for name in model.adapters:
        model.decoder.remove_adapter(name)
    return model.decoder.logits(IDS)


def test_loftq_halves_what_quantizing_loses() -> None:
    exact = load_model(GOLDEN / "tied")
    lost = []
    for iterations in (1, 2, 5):
        model = load_model(GOLDEN / "tied", quantize="nf4")
        plain = model.weights["layers.1.up_proj"].dequantize()
        model.add_adapter(r=8, lora_alpha=4, init_lora_weights="loftq", loftq_config={"loftq_iter": iterations})
        base = model.adapter.base["layers.1.up_proj"]
        assert isinstance(base, NF4Tensor)
        weight = exact.weights["layers.1.up_proj"]
        lost.append(np.linalg.norm(weight - base.dequantize() - product(model, "layers.1.up_proj")))
        if iterations == 1:  # the best rank-8 fit of W - Q(W)
            assert np.array_equal(base.dequantize(), plain)
            singular = np.linalg.svd((weight - plain).astype(np.float64), compute_uv=False)
            np.testing.assert_allclose(lost[0], np.sqrt((singular[8:] ** 2).sum()), rtol=1e-4)
    assert lost[0] < 0.75 * np.linalg.norm(weight - plain)
    assert lost[2] < lost[0]


def test_principal_part_of_a_quantized_model_comes_from_its_folder() -> None:
    exact = load_model(GOLDEN / "tied")
    model = load_model(GOLDEN / "tied", quantize="nf4")
    model.add_adapter(r=3, lora_alpha=3, target_modules=["q_proj"], init_lora_weights="pissa")
    weight = exact.weights["layers.0.q_proj"].astype(np.float64)
    u, s, vt = np.linalg.svd(weight)
    np.testing.assert_allclose(product(model, "layers.0.q_proj"), u[:, :3] * s[:3] @ vt[:3], atol=1e-5)


def test_residuals_keep_the_type_of_the_base() -> None:
    model = load_model(GOLDEN / "tied", dtype="bfloat16")
    model.add_adapter(r=3, init_lora_weights="olora")
    assert model.adapter.base["layers.0.q_proj"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("value", ["pissa_niter_", "pissa_niter_0", "eva", "corda", 3])
def test_unknown_starts_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="init_lora_weights: expected true, false"):
        LoraConfig(init_lora_weights=value)


def test_a_rank_above_the_matrix_is_refused() -> None:
    with pytest.raises(ConfigError, match="r: expected at most 12"):
        load_model(GOLDEN / "tied").add_adapter(r=13, target_modules=["k_proj"], init_lora_weights="pissa")
