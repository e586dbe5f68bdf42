"""Adapters in PEFT's format: targets, round trips, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from device_values import write_values
from safetensors.numpy import load_file, save_file

from lora_c.adapters import find_targets, init_adapter, parse_adapter_config
from lora_c.configs import LoraConfig
from lora_c.errors import AdapterError, ConfigError, SaveError
from lora_c.families.architectures import architecture_of
from lora_c.model.model import Model
from lora_c.model.opening import load_model
from lora_c.notices import LoraCWarning

IDS = np.arange(3, 20, dtype=np.int32)
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def randomize(model: Model, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for parameter in model.trainable_parameters():
        write_values(parameter, rng.standard_normal(parameter.shape) * 0.1)


def saved(model_dir: Path, out: Path, **options: object) -> Path:
    model = load_model(model_dir)
    model.add_adapter(LoraConfig(**{"r": 4} | options))
    randomize(model)
    model.save_adapter(out)
    return out


def edit(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def adapter(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return saved(tiny_model_dir, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 14),
        ({"target_modules": ["q_proj", "v_proj"]}, 4),
        ({"target_modules": ["self_attn.q_proj"]}, 2),
        ({"target_modules": ["model.layers.1.mlp.up_proj"]}, 1),
        ({"target_modules": r".*\.0\..*(q|k)_proj"}, 2),
        ({"target_modules": ["q_proj"], "layers_to_transform": 1}, 1),
        ({"layers_to_transform": [0], "layers_pattern": "layers"}, 7),
        ({"exclude_modules": ["down_proj"]}, 12),
        ({"exclude_modules": r".*mlp.*"}, 8),
    ],
)
def test_targets_follow_pefts_rules(tiny, options: dict, expected: int) -> None:
    assert len(find_targets(LoraConfig(**options), architecture_of(tiny.config))) == expected


def test_rank_and_alpha_patterns(tiny) -> None:
    config = LoraConfig(
        r=8, lora_alpha=16, rank_pattern={"q_proj": 2, "^model.layers.1.mlp.up_proj": 3}, alpha_pattern={r".*\.0\.mlp\..*": 4}
    )
    found = {t.spec.name: t for t in find_targets(config, architecture_of(tiny.config))}
    assert (found["layers.0.q_proj"].r, found["layers.0.q_proj"].scale) == (2, 8.0)
    assert (found["layers.1.up_proj"].r, found["layers.0.up_proj"].r) == (3, 8)
    assert found["layers.0.up_proj"].scale == 0.5
    rs = find_targets(LoraConfig(r=4, lora_alpha=8, use_rslora=True), architecture_of(tiny.config))
    assert rs[0].scale == 4.0


@pytest.mark.parametrize("names", [["w_proj"], ["norm"], [], r"nothing", r"(", ["q_proj", "wpe"]])
def test_targets_that_match_nothing_are_refused(tiny, names: object) -> None:
    with pytest.raises(AdapterError, match="target_modules: expected"):
        find_targets(LoraConfig(target_modules=names), architecture_of(tiny.config))


def test_fresh_adapter_changes_nothing_and_depends_on_the_seed_only(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir)
    before = model.decoder.logits(IDS)
    model.add_adapter(r=4, seed=3)
    assert np.array_equal(model.decoder.logits(IDS), before)
    other = load_model(tiny_model_dir)
    other.add_adapter(r=4, seed=3, target_modules=["v_proj"])
    a, b = model.adapters["layers.1.v_proj"].A.data, other.adapters["layers.1.v_proj"].A.data
    assert np.array_equal(a, b) and not np.array_equal(a, model.adapters["layers.0.v_proj"].A.data)
    assert model.num_parameters(only_trainable=True) == sum(p.size for p in model.trainable_parameters())


def test_initial_distributions(tiny) -> None:
    target = find_targets(LoraConfig(r=256, target_modules=["q_proj"]), architecture_of(tiny.config))[0]
    uniform, zero = init_adapter(target, LoraConfig(r=256))
    bound = 1 / np.sqrt(32)
    assert not zero.any() and np.abs(uniform).max() <= bound and abs(uniform.std() - bound / np.sqrt(3)) < 0.01 * bound
    normal, _ = init_adapter(target, LoraConfig(r=256, init_lora_weights="gaussian"))
    assert abs(normal.std() * 256 - 1) < 0.05


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3.5},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 5}},
        {"target_modules": r".*(q|v)_proj", "lora_dropout": 0.1},
        {"layers_to_transform": [1], "exclude_modules": ["k_proj"]},
    ],
)
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_round_trip_gives_equal_logits(tiny_model_dir: Path, tmp_path: Path, options: dict, quantize: str | None) -> None:
    model = load_model(tiny_model_dir, quantize=quantize)
    base = model.decoder.logits(IDS)
    model.add_adapter(LoraConfig(**{"r": 4} | options))
    randomize(model)
    expected = model.decoder.logits(IDS)
    assert np.abs(expected - base).max() > 1e-3
    model.save_adapter(tmp_path / "a")
    model.delete_adapter()
    assert np.array_equal(model.decoder.logits(IDS), base)
    model.load_adapter(tmp_path / "a")
    assert np.array_equal(model.decoder.logits(IDS), expected)
    assert model.trainable_parameters()
    model.delete_adapter()
    model.load_adapter(tmp_path / "a", is_trainable=False)
    assert not model.trainable_parameters()


def test_files_are_those_of_peft(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert tensors[KEY].shape == (4, 32) and len(tensors) == 28
    assert tensors[KEY.replace("lora_A", "lora_B")].shape == (32, 4)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM" and config["inference_mode"] is True
    assert config["target_modules"] == sorted(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    assert "seed" not in config


def test_smallest_config_of_peft(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = saved(tiny_model_dir, tmp_path / "a", r=8, target_modules=["q_proj", "v_proj"])
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    model = load_model(tiny_model_dir)
    model.load_adapter(folder)
    assert model.adapters["layers.0.q_proj"].scale == 1.0  # PEFT's defaults: r = 8, lora_alpha = 8


def test_bfloat16_adapter(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model_dir)
    model.add_adapter(r=4)
    randomize(model)
    model.save_adapter(tmp_path / "a", dtype="bfloat16")
    rounded = model.adapters["layers.0.q_proj"].A.data.astype(ml_dtypes.bfloat16).astype(np.float32)
    model.delete_adapter()
    model.load_adapter(tmp_path / "a")
    assert np.array_equal(model.adapters["layers.0.q_proj"].A.data, rounded)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lora_bias", True), ("layer_replication", [[0, 2]]), ("use_qalora", True), ("kasa_config", {"x": 1}),
        ("target_parameters", ["w"]), ("alora_invocation_tokens", [1]), ("use_bdlora", {"x": 1}), ("use_what_comes", 3),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "pissa"), ("init_lora_weights", "olora"), ("init_lora_weights", "loftq"), ("peft_type", "LOHA"),
    ],
)  # fmt: skip
def test_fields_that_change_the_result_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(AdapterError, match=f"{field}: expected"):
        parse_adapter_config({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], field: value}, "adapter_config.json")


def test_keys_that_peft_would_leave_out_are_named() -> None:
    values = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "never_heard_of": 3, "my_note": "x", "unset": None}
    with pytest.warns(LoraCWarning, match="a.json: never_heard_of, my_note: no effect") as notices:
        assert parse_adapter_config(values, "a.json").r == 4
    assert len(notices) == 1


def test_bad_values_are_refused() -> None:
    for changes in [{"r": 0}, {"r": "x"}, {"r": -1}, {"rank_pattern": {"q": 0}}, {"target_modules": 3}]:
        with pytest.raises(AdapterError, match="adapter_config.json: LoraConfig"):
            parse_adapter_config({"peft_type": "LORA"} | changes, "adapter_config.json")
    for key in ("r", "lora_alpha", "lora_dropout"):
        with pytest.raises(AdapterError, match=f"adapter_config.json: {key}: expected a number, got null"):
            parse_adapter_config({"peft_type": "LORA", key: None}, "adapter_config.json")


def test_adapter_for_another_base(make_model, adapter: Path) -> None:
    wider = load_model(make_model("wider", hidden_size=64))
    with pytest.raises(AdapterError, match=r"lora_[AB].weight: expected shape .* got .*; this is an adapter for another base"):
        wider.load_adapter(adapter)
    shallow = load_model(make_model("shallow", num_hidden_layers=1))
    with pytest.raises(AdapterError, match="layers.1.*another base"):
        shallow.load_adapter(adapter)
    assert shallow.adapter_config is None and not shallow.adapters


def test_damaged_adapters_are_refused(tiny_model_dir: Path, adapter: Path) -> None:
    model = load_model(tiny_model_dir)
    path = adapter / "adapter_model.safetensors"
    good = load_file(path)
    nan = good[KEY].copy()
    nan[1, 2] = np.nan
    cases = [
        ({k: v for k, v in good.items() if k != KEY}, f"expected tensor '{KEY}'"),
        (good | {KEY: nan}, r"expected finite numbers, got nan at index \(1, 2\)"),
        (good | {KEY: good[KEY].astype(np.int32)}, "expected F32, F16 or BF16"),
        (good | {KEY: good[KEY][:2].copy()}, "another rank"),
        (good | {"base_model.model.model.embed_tokens.lora_embedding_A": nan}, "not supported"),
        (good | {KEY.replace("lora_A.weight", "lora_magnitude_vector"): good[KEY][0].copy()}, "asks for"),
    ]
    for tensors, message in cases:
        save_file(tensors, path)
        with pytest.raises(AdapterError, match=message):
            model.load_adapter(adapter)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(AdapterError, match="safetensors: expected"):
        model.load_adapter(adapter)
    (adapter / "adapter_config.json").write_text("[")
    with pytest.raises(AdapterError, match="expected a JSON file"):
        model.load_adapter(adapter)
    path.rename(adapter / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickle"):
        model.load_adapter(adapter)
    with pytest.raises(AdapterError, match="nothing there"):
        model.load_adapter(adapter / "absent")
    assert model.adapter_config is None


def test_order_of_calls(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model_dir)
    for call in (
        model.delete_adapter,
        model.unmerge_adapter,
        model.merge_adapter,
        model.merge,
        lambda: model.save_adapter("x"),
    ):
        with pytest.raises(AdapterError, match="expected a model"):
            call()
    model.add_adapter(r=2)
    with pytest.raises(AdapterError, match="expected a model without one"):
        model.add_adapter(r=2)
    with pytest.raises(AdapterError, match="expected a model without an active adapter"):
        model.save(tmp_path / "x")
    with pytest.raises(ConfigError, match="did you mean 'r'"):
        load_model(tiny_model_dir).add_adapter(rank=4)


def test_full_disk_keeps_the_old_adapter(tiny_model_dir: Path, adapter: Path, full_disk) -> None:
    model = load_model(tiny_model_dir)
    model.load_adapter(adapter)
    before = {p.name: p.read_bytes() for p in adapter.iterdir()}
    randomize(model, seed=5)
    full_disk()
    with pytest.raises(SaveError, match="expected room on the disk"):
        model.save_adapter(adapter)
    assert {p.name: p.read_bytes() for p in adapter.iterdir()} == before
    load_model(tiny_model_dir).load_adapter(adapter)
