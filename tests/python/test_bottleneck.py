"""Bottleneck adapters against lora_c.reference (NumPy, float64) and central differences, in every family; files; refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_values import is_same, narrow_dtypes, write_values
from safetensors.numpy import load_file, save_file
from test_families import adapt, folder, golden, loss_and_gradients, relative

import lora_c as lc
from lora_c import reference
from lora_c.adapters.bottleneck import BottleneckAdapter
from lora_c.configs import BottleneckConfig, IA3Config, LoraConfig
from lora_c.errors import AdapterError, ConfigError
from lora_c.model.merge_report import merge_with_report
from lora_c.model.model import Model

HERE = Path(__file__).parents[1] / "golden"
FAMILIES = sorted(path.stem for path in (HERE / "families").glob("*.npz") if "_" not in path.stem)
IDS = np.array([(7 * i + 3) % 48 for i in range(18)], np.int32)
ACTIVATIONS = {"relu": "relu", "swish": "silu", "silu": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
PLACEMENTS = {
    "houlsby": BottleneckConfig.houlsby(reduction_factor=8, scaling=0.7),
    "pfeiffer": BottleneckConfig.pfeiffer(bottleneck_size=5),
    "attention": BottleneckConfig(mh_adapter=True, output_adapter=False, non_linearity="gelu_new", leave_out=[0]),
}


def draw(model: Model, seed: int = 0) -> None:
    """Move every trained value, so that none can be left out unseen."""
    generator = np.random.default_rng(seed)
    for parameter in model.trainable_parameters():
        write_values(parameter, parameter.data + generator.normal(0, 0.3, parameter.shape).astype(np.float32))


def reference_weights(model: Model) -> dict[str, Any]:
    """What `reference.decoder_logits` reads: the parts of fused matrices, and the bottlenecks."""
    weights: dict[str, Any] = {}
    for spec in model.architecture.weights():
        array = np.asarray(model.dense_weight(spec.name), np.float64)
        ends = [first for _, first in spec.parts[1:]] + [None]
        weights |= {part: array[first:end] for (part, first), end in zip(spec.parts, ends, strict=True)} if spec.parts else {}
        weights |= {} if spec.parts else {spec.name: array}
    adapter = model.adapter
    assert isinstance(adapter, BottleneckAdapter)
    for name, parts in adapter.bottlenecks.items():
        keys = ("down", "down_bias", "up", "up_bias")
        arrays = {key: parameter.data.astype(np.float64) for key, parameter in zip(keys, parts, strict=True)}
        options = {"scale": adapter.config.scaling, "activation": ACTIVATIONS[adapter.config.non_linearity]}
        weights[f"{name}.bottleneck"] = arrays | options
    return weights


def reference_loss(model: Model, weights: dict[str, Any], ids: np.ndarray) -> float:
    logits = reference.decoder_logits(weights, model.decoder.config, ids, [0, len(ids)])[:-1]
    shifted = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(ids) - 1), ids[1:]]).mean())


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_loss_and_gradients(name: str, placement: str, tmp_path: Path) -> None:
    record = golden(name)
    model, ids = lc.load_model(folder(record, tmp_path / "model")), record["ids"][:20]
    base = model.decoder.logits(ids)
    model.add_adapter(PLACEMENTS[placement])
    assert is_same(model.device, model.decoder.logits(ids), base)  # up begins as zeros
    draw(model)
    weights = reference_weights(model)
    got, want = model.decoder.logits(ids), reference.decoder_logits(weights, model.decoder.config, ids, [0, len(ids)])
    assert np.abs(got - want).max() < 1e-4 and np.abs(got - base).max() > 1e-2
    whole = {}
    narrow = narrow_dtypes(model.device)
    for recompute, dtype in (
        ("none", "float32"),
        ("layer", "float32"),
        ("attention", "float32"),
        *(("none", dtype) for dtype in narrow),
    ):
        model.decoder.recompute, model.decoder.activation_dtype = recompute, dtype
        assert loss_and_gradients(model, ids) == pytest.approx(reference_loss(model, weights, ids), rel=1e-5)
        whole[recompute, dtype] = [parameter.grad.copy() for parameter in model.trainable_parameters()]
    model.decoder.activation_dtype = "float32"
    exact = whole["none", "float32"]
    for recompute in ("layer", "attention"):
        assert all(np.array_equal(a, b) for a, b in zip(exact, whole[recompute, "float32"], strict=True))
    for dtype in narrow:
        assert all(relative(b, a) < 5e-2 for a, b in zip(exact, whole["none", dtype], strict=True))
    check_slopes(model, weights, ids, exact)
    check_cached(model, ids)
    model.delete_adapter()
    assert np.array_equal(model.decoder.logits(ids), base)


def check_slopes(model: Model, weights: dict[str, Any], ids: np.ndarray, gradients: list[np.ndarray]) -> None:
    """Along a random direction in each tensor, by central differences of the float64 reference."""
    adapter = model.adapter
    assert isinstance(adapter, BottleneckAdapter)
    generator, step, at = np.random.default_rng(5), 1e-5, 0
    for name in adapter.bottlenecks:
        for key in ("down", "down_bias", "up", "up_bias"):
            array = weights[f"{name}.bottleneck"][key]
            direction = generator.normal(size=array.shape)
            sides = []
            for sign in (1, -1):
                weights[f"{name}.bottleneck"][key] = array + sign * step * direction
                sides.append(reference_loss(model, weights, ids))
            weights[f"{name}.bottleneck"][key] = array
            slope, size = (sides[0] - sides[1]) / (2 * step), float(np.linalg.norm(gradients[at]))
            assert abs(float((gradients[at] * direction).sum()) - slope) < 1e-4 * (abs(slope) + size), (name, key)
            at += 1
    assert at == len(gradients)


def check_cached(model: Model, ids: np.ndarray) -> None:
    whole = model.decoder.logits(ids[:11])
    cache = model.decoder.new_cache(len(ids))
    for begin, end in ((0, 7), (7, 8), (8, 11)):
        row = model.decoder.decode(cache, ids[begin:end])
        assert np.abs(row[0] - whole[end - 1]).max() < 5e-5


@pytest.mark.parametrize("activation", ("silu", "gelu_tanh", "relu"))
def test_the_reference_is_its_own_derivative(activation: str) -> None:
    generator = np.random.default_rng(1)
    h, dy = generator.normal(size=(5, 6)), generator.normal(size=(5, 6))
    parts = [generator.normal(size=shape) for shape in ((3, 6), (3,), (6, 3), (6,))]
    gradients = reference.bottleneck_backward(dy, h, *parts, 0.7, activation)
    for i, array in enumerate([h, *parts]):
        direction, sides = generator.normal(size=array.shape), []
        for step in (1e-6, -1e-6):
            moved = [h, *parts]
            moved[i] = array + step * direction
            sides.append(float((dy * reference.bottleneck(*moved, 0.7, activation)).sum()))
        assert float((gradients[i] * direction).sum()) == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-6)


def test_beside_lora_and_ia3_each_has_the_gradient_of_differences(tmp_path: Path) -> None:
    record = golden("llama")
    model, ids = lc.load_model(folder(record, tmp_path / "model")), record["ids"]
    adapt(model, record)
    model.add_adapter(IA3Config(), "ia3")
    model.add_adapter(PLACEMENTS["houlsby"], "bottleneck")
    model.set_adapter(["default", "ia3", "bottleneck"])
    draw(model, 4)
    loss = loss_and_gradients(model, ids)
    assert loss > 0
    generator = np.random.default_rng(6)
    for parameter in model.trainable_parameters():
        direction = generator.normal(size=parameter.shape).astype(np.float32)
        direction /= np.float32(np.linalg.norm(direction))
        kept, slope, sides = parameter.data.copy(), float((parameter.grad * direction).sum()), []
        for step in (1e-3, -1e-3):
            write_values(parameter, kept + np.float32(step) * direction)
            sides.append(exact_loss(model, ids))
        write_values(parameter, kept)
        assert abs(slope - (sides[0] - sides[1]) / 2e-3) < 2e-3 * (1 + abs(slope)), parameter.name


def exact_loss(model: Model, ids: np.ndarray) -> float:
    weight = np.ones(len(ids), np.float32)
    weight[-1] = 0
    cu, targets = np.array([0, len(ids)], np.int32), np.roll(ids, -1)
    return model.decoder.loss(ids, cu, targets, weight) / (len(ids) - 1)


# -- files ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_what_is_saved_is_loaded(placement: str, tmp_path: Path) -> None:
    model = lc.load_model(HERE / "adapters" / "tied")
    config = PLACEMENTS[placement].model_copy(update={"modules_to_save": ["norm"] if placement == "houlsby" else None})
    model.add_adapter(config)
    draw(model)
    model.save_adapter(tmp_path / "saved")
    tensors = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    first = 1 if placement == "attention" else 0
    part = "mlp.down_proj" if placement == "pfeiffer" else "self_attn.o_proj"
    size = {"houlsby": 3, "pfeiffer": 5, "attention": 1}[placement]
    key = f"base_model.model.model.layers.{first}.{part}.bottleneck"
    shapes = {"down.weight": (size, 24), "down.bias": (size,), "up.weight": (24, size), "up.bias": (24,)}
    assert {name: tensors[f"{key}.{name}"].shape for name in shapes} == shapes
    assert f"base_model.model.model.layers.0.{part}.bottleneck.up.bias" in tensors or placement == "attention"
    written = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert written["peft_type"] == "BOTTLENECK" and written["non_linearity"] == config.non_linearity
    again = lc.load_model(HERE / "adapters" / "tied")
    again.load_adapter(tmp_path / "saved")
    assert again.adapter_config == model.adapter_config
    assert np.array_equal(again.decoder.logits(IDS), model.decoder.logits(IDS))
    assert len(again.trainable_parameters()) == len(model.trainable_parameters())


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    model = lc.load_model(HERE / "adapters" / "tied")
    model.add_adapter(PLACEMENTS["houlsby"])
    model.save_adapter(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    first = next(iter(tensors))
    cases: list[tuple[str, dict[str, Any], dict[str, np.ndarray]]] = [
        ("got none for", config, {key: value for key, value in tensors.items() if key != first}),
        ("expected only what", config, tensors | {"more": tensors[first]}),
        ("expected shape", config | {"reduction_factor": 4.0}, tensors),
        ("non_linearity: expected", config | {"non_linearity": "gelu"}, tensors),
        ("expected only", config | {"ln_before": True}, tensors),
    ]
    for number, (message, values, changed) in enumerate(cases):
        damaged = tmp_path / str(number)
        damaged.mkdir()
        (damaged / "adapter_config.json").write_text(json.dumps(values))
        save_file(changed, damaged / "adapter_model.safetensors")
        with pytest.raises(AdapterError, match=message):
            model.load_adapter(damaged, "damaged")


# -- what it cannot be ------------------------------------------------------------------------------------------------------


def test_it_cannot_be_merged() -> None:
    model = lc.load_model(HERE / "adapters" / "tied")
    model.add_adapter(PLACEMENTS["pfeiffer"])
    model.add_adapter(LoraConfig(r=2), "low")
    for names in ("default", ["low", "default"]):
        model.set_adapter(names)
        for merge in (model.merge, model.merge_adapter, lambda: merge_with_report(model)):
            with pytest.raises(AdapterError, match="an activation, so that no weight can hold them"):
                merge()
    assert not model.is_merged


def test_options_are_checked() -> None:
    for options, message in (
        ({"mh_adapter": False, "output_adapter": False}, "got neither"),
        ({"bottleneck_size": 4, "reduction_factor": 8.0}, "got both"),
        ({"non_linearity": "gelu"}, "non_linearity"),
        ({"ln_before": True}, "ln_before: expected False"),
        ({"is_parallel": True}, "is_parallel: expected False"),
        ({"r": 8}, "r: unknown option"),
        ({"reduction_factor": 0.0}, "reduction_factor"),
    ):
        with pytest.raises(ConfigError, match=message):
            BottleneckConfig(**options)
    assert BottleneckConfig(original_ln_before=False, use_gating=False) == BottleneckConfig()
    model = lc.load_model(HERE / "adapters" / "tied")
    for leave_out in ([3], [0, 1, 2]):
        with pytest.raises(AdapterError, match="leave_out: expected"):
            model.add_adapter(BottleneckConfig(leave_out=leave_out))


@pytest.mark.parametrize("init", ("bert", "houlsby", "mam_adapter"))
def test_start_values(init: str) -> None:
    model = lc.load_model(HERE / "adapters" / "biased")
    base = model.decoder.logits(IDS)
    drawn = []
    for seed in (0, 0, 1):
        model.add_adapter(BottleneckConfig.houlsby(init_weights=init, reduction_factor=2, seed=seed), f"b{len(drawn)}")
        parts = {p.name.split(".bottleneck.")[1]: [] for p in model.trainable_parameters()}
        for p in model.trainable_parameters():
            parts[p.name.split(".bottleneck.")[1]].append(p.data.reshape(-1))
        drawn.append({key: np.concatenate(values) for key, values in parts.items()})
        assert is_same(model.device, model.decoder.logits(IDS), base) == (init == "mam_adapter")
    assert all(np.array_equal(drawn[0][key], drawn[1][key]) for key in drawn[0])
    assert not np.array_equal(drawn[0]["down.weight"], drawn[2]["down.weight"])
    assert not drawn[0]["down.bias"].any() and not drawn[0]["up.bias"].any()
    down, up = drawn[0]["down.weight"], drawn[0]["up.weight"]
    spread = {"bert": 0.02, "houlsby": 0.01, "mam_adapter": 1 / np.sqrt(3 * 24)}[init]
    assert abs(down.std() / spread - 1) < 0.2 and up.any() == (init != "mam_adapter")
    assert np.abs(down).max() <= {"bert": 0.1, "houlsby": 0.02, "mam_adapter": 1 / np.sqrt(24)}[init] * (1 + 1e-6)


def test_in_a_batch_it_has_calls_of_its_own(tiny_model_dir: Path) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(BottleneckConfig.houlsby(reduction_factor=4), "bottleneck")
    draw(model)
    model.add_adapter(LoraConfig(r=3, lora_alpha=24, init_lora_weights=False), "low")
    assert not model.adapter_set.is_shareable("bottleneck")
    long = {"max_new_tokens": 12, "ignore_eos": True}
    expected = {}
    for name in ("bottleneck", "low", None):
        model.set_adapter(name)
        expected[name] = model.generate("w3 w4", **long)
    assert len(set(expected.values())) == 3
    batch = lc.Batch(model, n_sequences=3)
    answers = {name: batch.add("w3 w4", adapter=name, **long) for name in expected}
    batch.run()
    assert {name: answer.text for name, answer in answers.items()} == expected
