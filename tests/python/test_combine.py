"""Combinations of adapters against PEFT's add_weighted_adapter (tests/golden/make_combine_golden.py)."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from lora_c.adapters.combine import Combination, combine
from lora_c.cli.merge import load_adapters
from lora_c.errors import AdapterError, ConfigError
from lora_c.model.model import Model
from lora_c.model.opening import load_model

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"
RECORD = np.load(GOLDEN / "combine.npz")
CASES = ast.literal_eval(str(RECORD["cases"]))
IDS = np.load(GOLDEN / "golden.npz")["ids"].astype(np.int32)


@pytest.fixture
def model() -> Model:
    model = load_model(GOLDEN / "tied")
    for name in ("first", "second", "third"):
        model.load_adapter(GOLDEN / name, name=name)
    return model


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_peft(model: Model, case: str) -> None:
    names, weights, options = CASES[case]
    model.add_weighted_adapter(names, weights, case, **options)
    model.set_adapter(case)
    want = RECORD[f"{case}.logits"]
    tolerance = 1e-5 * max(1.0, np.abs(want).max())
    assert np.abs(model.decoder.logits(IDS) - want).max() < tolerance
    assert model.adapters["layers.0.up_proj"].scale == 1.0


def test_the_result_is_an_adapter_like_any_other(model: Model, tmp_path: Path) -> None:
    model.add_weighted_adapter(["first", "third"], [0.6, 0.8], "both", "cat")
    model.set_adapter("both")
    expected = model.decoder.logits(IDS)
    model.save_adapter(tmp_path / "both")
    again = load_model(GOLDEN / "tied")
    again.load_adapter(tmp_path / "both")
    assert np.array_equal(again.decoder.logits(IDS), expected)
    merged = model.merge()
    assert np.abs(merged.decoder.logits(IDS) - expected).max() < 1e-4


def test_what_is_merged_takes_no_memory_for_gradients() -> None:
    model = load_model(GOLDEN / "tied")
    combination = {"weights": [0.5, 2.0], "combination": "cat", "density": None, "svd_rank": None}
    combination |= {"majority_sign_method": "total", "seed": 0}
    paths = (str(GOLDEN / "first"), str(GOLDEN / "third"))
    load_adapters(model, paths, combination)
    for name in model.adapter_set.names:
        model.set_adapter(name)
        assert model.trainable_parameters() == [], name
    plain = load_adapters(load_model(GOLDEN / "tied"), paths, combination | {"weights": None})
    assert plain["weights"] == [1.0, 1.0] and plain["combination"] == "cat"


def test_clamping_bounds_the_entries(model: Model) -> None:
    """Not compared with PEFT: the quantile depends on the signs that a decomposition is free to choose."""
    for name, clamp in (("free", None), ("bound", 0.9)):
        model.add_weighted_adapter(["first", "third"], [0.6, 0.8], name, "svd", svd_rank=5, svd_clamp=clamp)
    arrays = {}
    for name in ("free", "bound"):
        model.set_adapter(name)
        layer = model.adapters["layers.1.up_proj"]
        arrays[name] = np.concatenate([layer.A.data.ravel(), layer.B.data.ravel()])
    bound = np.quantile(arrays["free"], 0.9)
    np.testing.assert_allclose(np.sort(np.abs(arrays["bound"])), np.sort(np.minimum(np.abs(arrays["free"]), bound)), rtol=1e-5)


@pytest.mark.parametrize("kind", ["dare_linear", "dare_ties", "dare_linear_svd", "dare"])
def test_dare_prunes_at_random_by_its_seed(model: Model, kind: str) -> None:
    kept = {}
    for seed in (1, 1, 2):
        how = Combination(kind, density=0.5, seed=seed)
        model.load_adapter(GOLDEN / "first", name="x")
        arrays = combine(parts(model, ["first", "second"]), [0.7, 0.3], how, model.architecture)
        model.delete_adapter("x")
        found = arrays.matrices["layers.0.q_proj"]
        if seed in kept:
            assert np.array_equal(kept[seed], found.B @ found.A)
        kept[seed] = found.B @ found.A
    assert not np.allclose(kept[1], kept[2])


def test_dare_keeps_the_expected_value(model: Model) -> None:
    first = parts(model, ["first", "second"])
    mean = np.zeros_like(first[0].matrices["layers.0.q_proj"].A)
    for seed in range(400):
        how = Combination("dare_linear", density=0.5, seed=seed)
        mean += combine(first, [1.0, 1.0], how, model.architecture).matrices["layers.0.q_proj"].A / 400
    exact = combine(first, [1.0, 1.0], Combination("linear"), model.architecture).matrices["layers.0.q_proj"].A
    assert np.abs(mean - exact).max() < 5 * np.abs(exact).max() / np.sqrt(400)


def parts(model: Model, names: list[str]) -> list:
    found = []
    for name in names:
        model.set_adapter(name)
        found.append(model.adapter.arrays())
    return found


def test_refusals(model: Model) -> None:
    for options, match in [
        ({"combination_type": "tie"}, "did you mean 'ties'"),
        ({"combination_type": "ties"}, "density: expected a share"),
        ({"combination_type": "ties", "density": 0.0}, "density: expected a share"),
        ({"combination_type": "svd", "svd_rank": 0}, "svd_rank: expected 1 to"),
        ({"combination_type": "svd", "svd_clamp": 2.0}, "svd_clamp: expected a quantile"),
        ({"combination_type": "ties", "density": 0.5, "majority_sign_method": "most"}, "majority_sign_method"),
    ]:
        with pytest.raises(ConfigError, match=match):
            model.add_weighted_adapter(["first", "second"], [1.0, 1.0], "x", **options)
    for names, weights, match in [
        (["first", "none"], [1, 1], "expected names among"),
        (["first", "third"], [1, 1], "equal ranks"),
    ]:
        with pytest.raises(AdapterError, match=match):
            model.add_weighted_adapter(names, weights, "x", "linear")
    for weights in ([1.0], [1.0, float("nan")]):
        with pytest.raises(ConfigError, match="weights: expected"):
            model.add_weighted_adapter(["first", "second"], weights, "x", "linear")
    with pytest.raises(AdapterError, match="without one named 'second'"):
        model.add_weighted_adapter(["first", "third"], [1, 1], "second", "cat")
    for name, what in (("dora_rslora", "DoRA magnitudes"), ("save_head_tied", "lm_head"), ("tokens_tied", "token rows")):
        model.load_adapter(GOLDEN / name, name=name)
        with pytest.raises(AdapterError, match=what):
            model.add_weighted_adapter(["first", name], [1, 1], "x", "cat")
