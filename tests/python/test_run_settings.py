"""What is set for a run ends with it, and what a model holds is nobody's to change."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import lora_c as lc
from lora_c.errors import AdapterError, ConfigError
from lora_c.training.memory import forecast


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "d.txt").write_text("w3 w4 w5 w6 " * 12, encoding="utf-8")
    return tmp_path / "d.txt"


def trainer_of(model: lc.Model, data: Path, out: Path, **options: Any) -> lc.Trainer:
    dataset = lc.load_dataset(data, model.tokenizer, max_seq_length=16)
    return lc.Trainer(model, dataset, lc.TrainConfig(output_dir=str(out), max_steps=3, **options))


def settings(model: lc.Model) -> tuple[str, str, str]:
    return model.decoder.precision, model.decoder.recompute, model.decoder.activation_dtype


OTHER = {"precision": "fast", "recompute": "layer", "activation_dtype": "bfloat16"}


@pytest.mark.parametrize("ends", ["well", "with an error"])
def test_settings_of_a_run_end_with_it(tiny_model_dir: Path, data: Path, tmp_path: Path, ends: str, monkeypatch: Any) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2)
    before = settings(model)
    assert before == ("exact", "none", "float32")
    trainer = trainer_of(model, data, tmp_path / "out", **OTHER)
    seen: list[Any] = []
    real = lc.Trainer._forward_backward

    def forward_backward(self: lc.Trainer, *args: Any) -> float:
        seen.append(settings(model))
        if ends != "well":
            raise RuntimeError("stop")
        return real(self, *args)

    monkeypatch.setattr(lc.Trainer, "_forward_backward", forward_backward)
    forecast(trainer)
    assert settings(model) == before
    if ends == "well":
        trainer.train()
        trainer.evaluate(trainer.train_data)
    else:
        with pytest.raises(RuntimeError, match="stop"):
            trainer.train()
    assert set(seen) == {("fast", "layer", "bfloat16")} and settings(model) == before


def test_activations_of_a_run_are_freed_at_its_end(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2)
    live = lc.memory_report()["activations"]["live"]
    trainer_of(model, data, tmp_path / "out").train()
    assert lc.memory_report()["activations"]["live"] == live


def test_the_peak_is_of_this_run(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2)
    first = trainer_of(model, data, tmp_path / "a").train().peak_memory_bytes
    big = lc.NF4Tensor.quantize(np.ones((4096, 4096), np.float32))  # before the next run, and gone
    del big
    assert trainer_of(model, data, tmp_path / "b").train().peak_memory_bytes < first + (1 << 20)


def test_configurations_are_copied_and_what_is_held_is_frozen(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    lora = lc.LoraConfig(r=2, target_modules=["q_proj"])
    model.add_adapter(lora)
    lora.r = 7
    assert isinstance(lora.target_modules, list)
    lora.target_modules.append("k_proj")
    held = model.adapter_config
    assert held is not None and held.r == 2 and held.target_modules == ["q_proj"]
    with pytest.raises(ConfigError, match="LoraConfig: lora_alpha: expected a configuration of your own"):
        held.lora_alpha = 3.0
    own = held.model_copy(update={"r": 5})
    own.lora_alpha = 3.0
    assert (own.r, own.lora_alpha, held.lora_alpha) == (5, 3.0, 8.0)
    assert held == lc.LoraConfig(r=2, target_modules=["q_proj"]) and "held" not in repr(held) + str(held.model_dump())
    assert pickle.loads(pickle.dumps(held)) == held

    config = lc.TrainConfig(output_dir=str(tmp_path / "out"), max_steps=3)
    trainer = lc.Trainer(model, lc.load_dataset(data, model.tokenizer, max_seq_length=16), config)
    config.max_steps = 9
    assert trainer.total_steps == 3
    with pytest.raises(ConfigError, match="TrainConfig: learning_rate: expected a configuration of your own"):
        trainer.config.learning_rate = 1.0


def test_a_trainer_of_parameters_that_the_model_does_not_use_is_refused(
    tiny_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2)
    trainer = trainer_of(model, data, tmp_path / "out")
    model.merge_adapter()
    with pytest.raises(ConfigError, match="model: expected one that is not merged"):
        trainer.train()
    model.unmerge_adapter()
    model.add_adapter(r=2, name="other")
    with pytest.raises(ConfigError, match="parameters that the trainer was made for, got a model with the adapter 'other'"):
        trainer.train()
    model.set_adapter(None)
    with pytest.raises(ConfigError, match="got a model with no adapter in use"):
        trainer.train()
    model.set_adapter("default")
    assert trainer.train().steps == 3


def test_a_head_that_is_trained_is_saved_with_the_adapter(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    model = lc.load_model(tiny_model_dir, trainable="head", progress=False)
    model.add_adapter(r=2, target_modules=["q_proj"])
    trainer_of(model, data, tmp_path / "out", learning_rate=1e-2).train()
    model.save_adapter(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["lm_head"]
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any("lm_head" in name for name in tensors)
    ids = np.arange(3, 20, dtype=np.int32)
    again = lc.load_model(tiny_model_dir, progress=False)
    again.load_adapter(tmp_path / "adapter")
    np.testing.assert_array_equal(again.decoder.logits(ids), model.decoder.logits(ids))


def test_an_adapter_on_a_head_that_is_trained_is_refused(tiny_model_dir: Path) -> None:
    model = lc.load_model(tiny_model_dir, trainable="head", progress=False)
    with pytest.raises(AdapterError, match="expected matrices that are frozen, got lm_head"):
        model.add_adapter(r=2, target_modules=["q_proj", "lm_head"])


def test_what_is_no_configuration_is_refused_and_names_of_transformers_are_answered(
    tiny_model_dir: Path, data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2)
    dataset = lc.load_dataset(data, model.tokenizer, max_seq_length=16)
    with pytest.raises(ConfigError, match="config: expected a TrainConfig, got a dict"):
        lc.Trainer(model, dataset, {"max_steps": 2})  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    assert lc.Trainer(model, dataset).config == lc.TrainConfig()
    trainer = trainer_of(model, data, tmp_path / "out")
    with pytest.raises(AttributeError, match="Trainer has no attribute 'train_dataset'; here it is trainer.train_data"):
        trainer.train_dataset  # noqa: B018
    assert not hasattr(trainer, "save_model")


def test_a_model_is_trained_by_one_trainer_at_a_time(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2)
    other = trainer_of(model, data, tmp_path / "b")

    class Inner(lc.Callback):
        def on_step(self, state: lc.TrainerState) -> None:
            other.train()

    dataset = lc.load_dataset(data, model.tokenizer, max_seq_length=16)
    outer = lc.Trainer(model, dataset, lc.TrainConfig(output_dir=str(tmp_path / "a"), max_steps=3), callbacks=[Inner()])
    with pytest.raises(ConfigError, match="train: expected a model that no other Trainer trains"):
        outer.train()
    assert not model.is_training and other.train().steps == 3
