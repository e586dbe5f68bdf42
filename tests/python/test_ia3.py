"""IA3 against PEFT in every family (tests/golden/make_ia3_golden.py): outputs, gradients, files, merged weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from device_values import is_same, narrow_dtypes, write_values
from safetensors.numpy import load_file
from test_families import adapt, folder, from_bits, golden, loss_and_gradients, relative

import lora_c as lc
from lora_c.adapters.ia3 import IA3Adapter
from lora_c.configs import IA3Config, LoraConfig
from lora_c.errors import AdapterError, ConfigError
from lora_c.model.model import Model

HERE = Path(__file__).parents[1] / "golden"
IA3 = HERE / "ia3"
FAMILIES, STACKED, FOLDERS = (dict(np.load(IA3 / f"{name}.npz")) for name in ("families", "stacked", "golden"))
CASES = sorted({key.rsplit(".config")[0] for key in FAMILIES if key.endswith(".config")})
BESIDE = sorted({key.rsplit(".config")[0] for key in STACKED if key.endswith(".config")})
IDS = np.array([(7 * i + 3) % 48 for i in range(18)], np.int32)


def with_vectors(model: Model, record: dict[str, np.ndarray], case: str, name: str = "default") -> Model:
    """The model with the adapter of a golden case in use."""
    options = json.loads(record[f"{case}.config"].tobytes())
    model.add_adapter(IA3Config(**options), name)
    values = {key.split(".value.")[1]: value for key, value in record.items() if key.startswith(f"{case}.value.")}
    found = {parameter.name: parameter for parameter in model.trainable_parameters()}
    assert {key for key in found} == set(values)
    for key, parameter in found.items():
        assert parameter.shape == values[key].shape
        write_values(parameter, from_bits(values[key]))
    return model


def compare(model: Model, record: dict[str, np.ndarray], case: str, ids: np.ndarray) -> None:
    want = record[f"{case}.logits"]
    assert np.abs(model.decoder.logits(ids)[: len(want)] - want).max() < 1e-4
    grads = {key.split(".grad.")[1]: value for key, value in record.items() if key.startswith(f"{case}.grad.")}
    near = {"bfloat16": 3e-2, "int8": 6e-2}
    for recompute, dtype, close in (
        ("none", "float32", 1e-4),
        ("layer", "float32", 1e-4),
        ("attention", "float32", 1e-4),
        *(("none", dtype, near[dtype]) for dtype in narrow_dtypes(model.device)),
    ):
        model.decoder.recompute, model.decoder.activation_dtype = recompute, dtype
        assert loss_and_gradients(model, ids) == pytest.approx(float(record[f"{case}.loss"]), rel=1e-5)
        got = {parameter.name: parameter.grad for parameter in model.trainable_parameters()}
        for key, grad in grads.items():
            assert relative(got[key], grad) < close, f"{key}, {recompute}, {dtype}"
    model.decoder.activation_dtype = "float32"


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients(case: str, tmp_path: Path) -> None:
    record = golden(case.split(".")[0])
    model = lc.load_model(folder(record, tmp_path / "model"))
    base = model.decoder.logits(record["ids"])
    with_vectors(model, FAMILIES, case)
    compare(model, FAMILIES, case, record["ids"])
    check_cached(model, record["ids"])
    model.set_adapter(None)
    assert np.array_equal(model.decoder.logits(record["ids"]), base)


def check_cached(model: Model, ids: np.ndarray) -> None:
    whole = model.decoder.logits(ids[:11])
    cache = model.decoder.new_cache(len(ids))
    for begin, end in ((0, 7), (7, 8), (8, 11)):
        row = model.decoder.decode(cache, ids[begin:end])
        assert np.abs(row[0] - whole[end - 1]).max() < 5e-5


@pytest.mark.parametrize("case", BESIDE)
def test_beside_a_lora_adapter(case: str, tmp_path: Path) -> None:
    record = golden(case.split(".")[0])
    model = lc.load_model(folder(record, tmp_path / "model"))
    adapt(model, record)
    with_vectors(model, STACKED, case, "ia3")
    model.set_adapter(["default", "ia3"])
    compare(model, STACKED, case, record["ids"])
    merged = model.merge()
    assert np.abs(merged.decoder.logits(record["ids"]) - model.decoder.logits(record["ids"])).max() < 2e-4


def test_a_new_one_changes_nothing_unless_it_is_random() -> None:
    model = lc.load_model(HERE / "adapters" / "biased")
    base = model.decoder.logits(IDS)
    model.add_adapter(IA3Config())
    assert is_same(model.device, model.decoder.logits(IDS), base)
    assert all((parameter.data == 1).all() for parameter in model.trainable_parameters())
    drawn = []
    for seed in (1, 1, 2):
        model.add_adapter(IA3Config(init_ia3_weights=False, seed=seed), f"random {len(drawn)}")
        drawn.append(np.concatenate([parameter.data.reshape(-1) for parameter in model.trainable_parameters()]))
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
    assert abs(drawn[0].mean()) < 0.3 and abs(drawn[0].std() - 1) < 0.3


# -- files ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("defaults", "linear", "saved"))
def test_folders_of_peft(name: str, tmp_path: Path) -> None:
    base = json.loads((IA3 / name / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = lc.load_model(HERE / "adapters" / base)
    model.load_adapter(IA3 / name)
    assert np.abs(model.decoder.logits(IDS) - FOLDERS[f"{name}.logits"]).max() < 1e-5
    model.save_adapter(tmp_path / "own")
    want, got = (load_file(path / "adapter_model.safetensors") for path in (IA3 / name, tmp_path / "own"))
    assert {key: value.shape for key, value in got.items()} == {key: value.shape for key, value in want.items()}
    assert all(np.array_equal(got[key], want[key]) for key in want)
    config, ours = (json.loads((path / "adapter_config.json").read_text()) for path in (IA3 / name, tmp_path / "own"))
    for key in set(config) - {"base_model_name_or_path", "peft_version"}:
        either = sorted if isinstance(config[key], list) else lambda value: value
        assert either(ours[key]) == either(config[key]), key
    again = lc.load_model(HERE / "adapters" / base)
    again.load_adapter(tmp_path / "own")
    assert np.array_equal(again.decoder.logits(IDS), model.decoder.logits(IDS))
    assert isinstance(again.adapter, IA3Adapter) and again.adapter_config == model.adapter_config


def test_defaults_are_written_as_names(tmp_path: Path) -> None:
    record = golden("gpt2")
    model = lc.load_model(folder(record, tmp_path / "model"))
    expected = {
        "defaults": (IA3Config(), ["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
        "linear": (IA3Config(target_modules="all-linear"), ["c_attn", "c_fc", "c_proj", "mlp.c_proj"], ["mlp.c_proj"]),
        "others": (IA3Config(target_modules=["c_fc"]), ["c_fc"], []),
    }
    for name, (config, targets, feedforward) in expected.items():
        model.add_adapter(config, name)
        model.save_adapter(tmp_path / name)
        written = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert (written["target_modules"], written["feedforward_modules"]) == (targets, feedforward), name
        assert written["fan_in_fan_out"] is True and written["peft_type"] == "IA3"
        assert model.adapter_config == config


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    model = lc.load_model(HERE / "adapters" / "tied")
    source = IA3 / "defaults"
    tensors = load_file(source / "adapter_model.safetensors")
    first = next(iter(tensors))
    changes = {
        "got none for": {key: value for key, value in tensors.items() if key != first},
        "expected only what": tensors | {"base_model.model.model.layers.9.mlp.down_proj.ia3_l": tensors[first]},
        "expected shape": tensors | {first: tensors[first].T.copy()},
        "expected finite": tensors | {first: np.full_like(tensors[first], np.nan)},
    }
    for number, (message, changed) in enumerate(changes.items()):
        damaged = tmp_path / str(number)
        damaged.mkdir()
        (damaged / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
        save_file(changed, damaged / "adapter_model.safetensors")
        with pytest.raises(AdapterError, match=message):
            model.load_adapter(damaged)
    for format in ("mlx", "gguf"):
        model.add_adapter(IA3Config(), format)
        with pytest.raises(
            AdapterError, match="expected an adapter of LoRA, got one of IA3, for which it has no place; merge it"
        ):
            model.save_adapter(tmp_path / "other", format=format)  # type: ignore[arg-type]


# -- merging ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("defaults", "linear"))
def test_merged_weights_are_pefts(name: str) -> None:
    base = json.loads((IA3 / name / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = lc.load_model(HERE / "adapters" / base)
    model.load_adapter(IA3 / name)
    before = model.decoder.logits(IDS)
    merged = model.merge()
    by_file = {spec.file_name: np.asarray(merged.weights[spec.name]) for spec in merged.architecture.weights()}
    for key, value in FOLDERS.items():
        if key.startswith(f"{name}.merged."):
            assert np.array_equal(by_file[key.removeprefix(f"{name}.merged.")], value), key
    assert np.abs(merged.decoder.logits(IDS) - before).max() < 1e-5
    kept = {key: np.array(weight) for key, weight in model.weights.items()}
    model.merge_adapter()
    assert np.abs(model.decoder.logits(IDS) - before).max() < 1e-5
    assert np.array_equal(np.asarray(model.weights["layers.1.v_proj"]), np.asarray(merged.weights["layers.1.v_proj"]))
    model.unmerge_adapter()
    assert all(np.array_equal(np.asarray(model.weights[key]), value) for key, value in kept.items())
    assert np.array_equal(model.decoder.logits(IDS), before)


def test_a_quantized_base_is_merged_as_lora_is(tmp_path: Path) -> None:
    model = lc.load_model(HERE / "adapters" / "biased", quantize="nf4")
    model.load_adapter(IA3 / "linear")
    before = model.decoder.logits(IDS)
    assert np.abs(model.merge().decoder.logits(IDS) - before).max() < 1e-4
    nf4 = model.merge(dtype="nf4")
    assert nf4.is_quantized and np.abs(nf4.decoder.logits(IDS) - before).max() < 1
    with pytest.raises(AdapterError, match="expected a float32 weight"):
        model.merge_adapter()


# -- refusals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["k_proj", "nothing"]}, "target_modules: expected names among"),
        ({"target_modules": ["lm_head"]}, "target_modules: expected matrices of layers, got 'lm_head'"),
        ({"target_modules": r".*\.none"}, "at least once"),
        ({"target_modules": ["k_proj"], "exclude_modules": ["nothing"]}, "exclude_modules: expected modules"),
        ({"target_modules": "all-linear", "feedforward_modules": ["nothing"]}, "feedforward_modules: expected names"),
    ],
)
def test_what_matches_nothing_is_refused(options: dict[str, object], message: str) -> None:
    model = lc.load_model(HERE / "adapters" / "biased")
    with pytest.raises(AdapterError, match=message):
        model.add_adapter(IA3Config(**options))


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="feedforward_modules: expected names of target_modules"):
        IA3Config(target_modules=["k_proj"], feedforward_modules=["down_proj"])
    with pytest.raises(ConfigError, match="r: unknown option"):
        IA3Config(r=8)
    with pytest.raises(ConfigError, match="task_type"):
        IA3Config(task_type="SEQ_2_SEQ_LM")
    model = lc.load_model(HERE / "adapters" / "tied")
    with pytest.raises(ConfigError, match="lora_alpha: unknown option"):
        model.add_adapter(peft_type="IA3", lora_alpha=3)
    model.add_adapter(peft_type="ia3", target_modules=["q_proj"], feedforward_modules=[])
    assert model.adapter_config == IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    olmo = lc.load_model(folder(golden("olmo2"), tmp_path / "olmo2"))
    with pytest.raises(AdapterError, match="PEFT has no default"):
        olmo.add_adapter(IA3Config())
    with pytest.raises(AdapterError, match="feedforward_modules: expected names for olmo2"):
        olmo.add_adapter(IA3Config(target_modules=["q_proj"]))


# -- batches ----------------------------------------------------------------------------------------------------------------


def test_in_a_batch_it_has_calls_of_its_own(tiny_model_dir: Path) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(IA3Config(init_ia3_weights=False, seed=3), "scaled")
    model.add_adapter(LoraConfig(r=3, lora_alpha=24, init_lora_weights=False), "low")
    assert model.adapter_set.is_shareable("low") and not model.adapter_set.is_shareable("scaled")
    long = {"max_new_tokens": 12, "ignore_eos": True}
    expected = {}
    for name in ("scaled", "low", None):
        model.set_adapter(name)
        expected[name] = model.generate("w3 w4", **long)
    assert len(set(expected.values())) == 3
    batch = lc.Batch(model, n_sequences=3)
    answers = {name: batch.add("w3 w4", adapter=name, **long) for name in expected}
    batch.run()
    assert {name: answer.text for name, answer in answers.items()} == expected
