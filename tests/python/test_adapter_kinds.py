"""Runs with adapters of other kinds than LoRA: trained, accumulated, recomputed, resumed, inspected; the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_resume import TABLE, samples

import lora_c as lc
from lora_c.cli.adapter_options import take_adapter
from lora_c.cli.command import Command
from lora_c.configs import ADAPTER_KINDS, BottleneckConfig, IA3Config, LoraConfig
from lora_c.errors import AdapterError, CheckpointError, ConfigError
from lora_c.inspection.folders import inspect_path
from lora_c.training.memory import forecast

CONFIGS: dict[str, Any] = {
    "ia3": IA3Config(init_ia3_weights=False),
    "bottleneck": BottleneckConfig.houlsby(reduction_factor=4, init_weights="bert"),
}
OTHER: dict[str, dict[str, Any]] = {
    "ia3": {
        "target_modules": ["k_proj", "down_proj"], "feedforward_modules": [], "exclude_modules": ["v_proj"],
        "fan_in_fan_out": True, "modules_to_save": ["norm"], "init_ia3_weights": True, "seed": 3,
    },
    "bottleneck": {
        "mh_adapter": False, "output_adapter": False, "reduction_factor": 8.0, "bottleneck_size": 5, "non_linearity": "relu",
        "scaling": 0.5, "init_weights": "mam_adapter", "leave_out": [0], "modules_to_save": ["norm"], "seed": 3,
    },
}  # fmt: skip


@pytest.fixture
def trainer(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., lc.Trainer]:
    def make(kind: str, changes: dict[str, Any] | None = None, **options: Any) -> lc.Trainer:
        model = lc.load_model(tiny_model_dir, progress=False)
        config = CONFIGS[kind]
        changes = {} if changes is None else changes
        if "bottleneck_size" in changes:
            changes = changes | {"reduction_factor": 16.0}
        model.add_adapter(config.model_copy(update=changes))
        values = {"output_dir": str(tmp_path / "out"), "max_steps": 4, "save_steps": 2, "learning_rate": 1e-2,
                  "per_device_train_batch_size": 2, "precision": "exact"}  # fmt: skip
        return lc.Trainer(model, samples(), lc.TrainConfig(**values | options))

    return make


def values_of(trainer: lc.Trainer) -> list[np.ndarray]:
    return [np.array(parameter.data) for parameter in trainer.parameters]


def loss_on_samples(model: lc.Model) -> float:
    """Of all tokens that the run learns."""
    total = 0.0
    for sample in samples().samples:
        ids = np.asarray(sample.input_ids, np.int32)
        weight = np.append(np.ones(len(ids) - 1, np.float32), np.float32(0))
        total += model.decoder.loss(ids, np.array([0, len(ids)], np.int32), np.roll(ids, -1), weight)
    return total


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_run_learns_and_its_folder_says_what_it_is(kind: str, trainer, tmp_path: Path) -> None:
    run = trainer(kind, max_steps=40)
    before = values_of(run)
    plan = forecast(run)
    loss = loss_on_samples(run.model)
    run.train()
    assert loss_on_samples(run.model) < loss
    assert all(not np.array_equal(a, b) for a, b in zip(before, values_of(run), strict=True))
    assert plan.parameters == 4 * sum(parameter.size for parameter in run.parameters)
    assert run.model.num_parameters(only_trainable=True) == sum(array.size for array in before)
    run.model.save_adapter(tmp_path / "adapter")
    report = inspect_path(tmp_path / "adapter")
    assert not report.problems and report.facts["method"] == {"ia3": "IA3", "bottleneck": "BOTTLENECK"}[kind]
    assert report.facts["parameters"] in (sum(a.size for a in before), f"{sum(a.size for a in before):,}")
    shown = repr(run.model)
    assert {"ia3": "IA3", "bottleneck": "BOTTLENECK"}[kind] in shown
    again = lc.load_model(run.model.source, progress=False)
    again.load_adapter(tmp_path / "adapter")
    ids = np.arange(3, 20, dtype=np.int32)
    assert np.array_equal(again.decoder.logits(ids), run.model.decoder.logits(ids))


@pytest.mark.parametrize("kind", CONFIGS)
def test_recomputation_and_threads_keep_the_bits(kind: str, trainer) -> None:
    first = trainer(kind)
    first.train()
    before = lc.get_num_threads()
    try:
        lc.set_num_threads(1)
        other = trainer(kind, recompute="layer")
        other.train(overwrite=True)
    finally:
        lc.set_num_threads(before)
    assert all(np.array_equal(a, b) for a, b in zip(values_of(first), values_of(other), strict=True))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_resumed_run_has_the_bits_of_a_whole_one(kind: str, trainer, tmp_path: Path) -> None:
    whole = trainer(kind, gradient_accumulation_steps=2)
    whole.train()
    resumed = trainer(kind, gradient_accumulation_steps=2)
    assert resumed.train(resume=str(tmp_path / "out/checkpoint-2")).steps == 4
    assert all(np.array_equal(a, b) for a, b in zip(values_of(whole), values_of(resumed), strict=True))


def rules(cls: str) -> dict[str, str]:
    """Field to rule, of one class in docs/RESUME.md."""
    kind, found = "", {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"\| (\w*) ?\| (.+?) \| (.+?) \|", line)
        if match:
            kind = match[1] or kind
            found |= {match[2].strip("`"): match[3]} if kind == cls else {}
    return found


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_changed_field_is_refused_or_allowed_as_the_table_says(kind: str, trainer, tmp_path: Path) -> None:
    cls = type(CONFIGS[kind])
    table = rules(cls.__name__)
    assert list(table) == list(cls.model_fields) and set(OTHER[kind]) == set(cls.model_fields)
    trainer(kind).train()
    for field, value in OTHER[kind].items():
        if field == "output_adapter":
            assert table[field].startswith("refused")
        resumed = trainer(kind, {field: value})
        if table[field].startswith("allowed"):
            assert resumed.train(resume=str(tmp_path / "out/checkpoint-2")).steps == 4
            continue
        with pytest.raises(CheckpointError, match=rf"{cls.__name__}\.{field} .* -> "):
            resumed.train(resume=str(tmp_path / "out/checkpoint-2"))


@pytest.mark.parametrize("kind", CONFIGS)
def test_only_adapters_of_lora_are_combined(kind: str, tiny_model_dir: Path) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(CONFIGS[kind], kind)
    model.add_adapter(LoraConfig(r=2), "low")
    for names in ([kind], ["low", kind]):
        with pytest.raises(AdapterError, match="adapters: expected adapters of LoRA, got one of"):
            model.add_weighted_adapter(names, [1.0] * len(names), "both", "linear")


# -- the command line ---------------------------------------------------------------------------------------------------------


def test_options_of_another_kind_are_refused_by_name() -> None:
    assert take_adapter({}, 7) == LoraConfig(seed=7)
    settings = {"peft_type": "ia3", "target_modules": ["k_proj"], "model": "m"}
    assert take_adapter(settings, 7) == IA3Config(target_modules=["k_proj"], seed=7) and settings == {"model": "m"}
    bottleneck = take_adapter({"peft_type": "BOTTLENECK", "reduction_factor": 8.0, "scaling": 0.5}, 0)
    assert bottleneck == BottleneckConfig(reduction_factor=8.0, scaling=0.5)
    with pytest.raises(ConfigError, match="r: expected peft_type LORA, which has this option, got IA3"):
        take_adapter({"peft_type": "IA3", "r": 4}, 0)
    with pytest.raises(ConfigError, match="feedforward_modules: expected peft_type IA3"):
        take_adapter({"feedforward_modules": ["k_proj"]}, 0)


def test_every_option_of_every_kind_has_one_flag() -> None:
    from lora_c.cli.train import command

    assert isinstance(command, Command)
    names = [param.name for param in command.params]
    for cls in ADAPTER_KINDS.values():
        for field in cls.model_fields:
            assert names.count(field) == 1, field
    assert names.count("peft_type") == 1


@pytest.mark.parametrize("kind", ("IA3", "BOTTLENECK"))
def test_a_run_of_the_command_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml
    from click.testing import CliRunner
    from command_lines import make_workplace

    from lora_c.cli.train import command

    make_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    flags = {"IA3": ["--target-modules", "k_proj,down_proj"], "BOTTLENECK": ["--mh-adapter", "--reduction-factor", "4"]}[kind]
    common = ["--model", "model", "--data", "chat.jsonl", "--max-steps", "3", "--batch-size", "2"]
    result = CliRunner().invoke(command, [*common, "--output-dir", "out", "--peft-type", kind, *flags], standalone_mode=False)
    assert result.exception is None, result.output
    settings = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert settings["peft_type"] == kind and "r" not in settings and "lora_alpha" not in settings
    written = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert written["peft_type"] == kind
    card = (tmp_path / "out/README.md").read_text()
    assert f"- {kind.lower()}" in card and f"| {kind} |" in card and ("PeftModel" in card) == (kind == "IA3")
    again = CliRunner().invoke(command, ["--config", "out/config.yaml", "--output-dir", "again"], standalone_mode=False)
    assert again.exception is None, again.output
    one, two = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("out", "again"))
    assert one == two
    refused = CliRunner().invoke(
        command, [*common, "--output-dir", "no", "--peft-type", kind, "--lora-alpha", "3"], standalone_mode=False
    )
    assert isinstance(refused.exception, ConfigError) and "--lora-alpha: expected peft_type LORA" in str(refused.exception)
    full = CliRunner().invoke(
        command, [*common, "--output-dir", "no", "--peft-type", kind, "--method", "full"], standalone_mode=False
    )
    assert isinstance(full.exception, ConfigError) and "--peft-type: expected method" in str(full.exception)
