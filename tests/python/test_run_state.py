"""What is set for a run ends with it, and a trainer trains the parameters of its model or refuses."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_c import LoraConfig, TrainConfig, Trainer, load_model
from lora_c._core import memory_report
from lora_c.data import Dataset, Sample
from lora_c.errors import ConfigError
from lora_c.model.model import Model
from lora_c.notices import LoraCWarning
from lora_c.training.callbacks import Callback, TrainerState

RUN: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 0, "recompute": "layer"}


def samples(n: int = 8, length: int = 12, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    return Dataset([Sample(rng.integers(3, 60, length).astype(np.int32), np.ones(length, np.float32)) for _ in range(n)])


@pytest.fixture
def model(tiny_model_dir: Path) -> Model:
    loaded = load_model(tiny_model_dir, progress=False)
    loaded.add_adapter(r=2)
    return loaded


@pytest.fixture
def make(model: Model, tmp_path: Path) -> Callable[..., Trainer]:
    def trainer(eval_data: Dataset | None = None, callbacks: Any = (), data: Dataset | None = None, **options: Any) -> Trainer:
        config = TrainConfig(**{"output_dir": str(tmp_path / "out")} | RUN | options)
        return Trainer(model, data or samples(), config, eval_data, callbacks=callbacks)

    return trainer


def arrays(trainer: Trainer) -> list[Any]:
    return [p.data.copy() for p in trainer.parameters]


# --- settings -------------------------------------------------------------------------------------------------------------


def test_evaluation_computes_as_the_run_does(make) -> None:
    trainer = make(samples(3), precision="fast")
    trainer.train()
    last = [r["eval_loss"] for r in trainer.history if "eval_loss" in r][-1]
    assert trainer.evaluate() == last


# --- configs --------------------------------------------------------------------------------------------------------------


def test_configs_are_copied_and_what_is_held_is_frozen(tiny_model_dir, make) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], rank_pattern={"q_proj": 3})
    model = load_model(tiny_model_dir, progress=False)
    model.add_adapter(config)
    config.r, config.target_modules = 9, ["v_proj"]
    held = model.adapter_config
    assert held is not None and (held.r, held.target_modules) == (4, ["q_proj"])
    for change in (
        lambda: setattr(held, "r", 5), lambda: held.target_modules.append("k_proj"), lambda: held.target_modules.sort(),
        lambda: held.rank_pattern.update(q_proj=1), lambda: held.rank_pattern.__setitem__("a", 1),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"expected a (configuration|list or dict) of your own, got one"):
            change()
    assert (held.r, held.target_modules, held.rank_pattern) == (4, ["q_proj"], {"q_proj": 3})
    trainer = make()
    with pytest.raises(ConfigError, match="TrainConfig: learning_rate: expected a configuration of your own"):
        trainer.config.learning_rate = 1.0
    own = TrainConfig(output_dir=str(trainer.output_dir), max_steps=3)
    other = Trainer(trainer.model, samples(), own)
    own.max_steps = 7
    assert other.total_steps == 3


@pytest.mark.parametrize("deep", [False, True])
def test_a_copy_of_a_frozen_config_is_ones_own_and_equal(model, deep: bool) -> None:
    mine = model.adapter_config.model_copy(deep=deep)
    assert mine == model.adapter_config and mine.model_fields_set == model.adapter_config.model_fields_set
    mine.r, mine.rank_pattern["q_proj"] = 5, 7
    assert (model.adapter_config.r, model.adapter_config.rank_pattern) == (2, {})
    json.dumps(model.adapter_config.model_dump(mode="json"))


def test_the_config_of_a_loaded_adapter_is_frozen(model, tmp_path) -> None:
    model.save_adapter(tmp_path / "adapter")
    model.load_adapter(tmp_path / "adapter", name="again")
    model.set_adapter("again")
    with pytest.raises(ConfigError, match="expected a configuration of your own"):
        model.adapter_config.lora_dropout = 0.5


# --- whose parameters -----------------------------------------------------------------------------------------------------


def test_a_merged_model_is_refused_and_trains_after_unmerging(model, make) -> None:
    trainer = make()
    model.merge_adapter()
    for use in (trainer.train, make, lambda: trainer.resume_from(True)):
        with pytest.raises(ConfigError, match="model: expected one that is not merged, got a merged one"):
            use()
    model.unmerge_adapter()
    assert trainer.train().steps == 4


@pytest.mark.parametrize(
    "exchange",
    [
        lambda model: model.delete_adapter(),
        lambda model: model.set_adapter(None),
        lambda model: (model.add_adapter(r=2, name="other"), model.set_adapter("other")),
        lambda model: (model.delete_adapter(), model.add_adapter(r=2)),
    ],
)
def test_a_trainer_whose_parameters_are_no_longer_the_models_refuses(model, make, exchange) -> None:
    trainer = make()
    before = arrays(trainer)
    exchange(model)
    for use in (trainer.train, lambda: trainer.resume_from(True)):
        with pytest.raises(ConfigError, match="model: expected the parameters that the trainer was made for"):
            use()
    assert all(map(np.array_equal, arrays(trainer), before)) and not trainer.output_dir.exists()


def test_a_callback_that_exchanges_what_is_trained_ends_the_run(model, make) -> None:
    class Exchange(Callback):
        def on_step(self, state: TrainerState) -> None:
            state.model.set_adapter(None)

    with pytest.raises(ConfigError, match="the parameters that the trainer was made for"):
        make(callbacks=[Exchange()]).train()


# --- twice ----------------------------------------------------------------------------------------------------------------


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, state: TrainerState) -> None:
        if state.step == self.step:
            state.stop()


def test_train_twice_goes_on_with_the_bits_of_one_run(model, make, tmp_path, tiny_model_dir) -> None:
    trainer = make(callbacks=[StopAt(2)])
    first = trainer.train()
    assert first.interrupted and first.steps == 2 and len(first.history) == 2
    second = trainer.train()
    assert not second.interrupted and second.steps == 4 and len(first.history) == 2
    other = load_model(tiny_model_dir, progress=False)
    other.add_adapter(r=2)
    whole = Trainer(other, samples(), TrainConfig(**RUN | {"output_dir": str(tmp_path / "whole")}))
    whole.train()
    assert all(map(np.array_equal, arrays(trainer), arrays(whole)))
    assert [r["loss"] for r in trainer.history] == [r["loss"] for r in whole.history]


def test_a_run_that_was_left_by_an_error_goes_on_where_its_parameters_are(make, monkeypatch, tiny_model_dir, tmp_path) -> None:
    trainer, real = make(), Trainer._one_step

    def fail(self: Trainer, step: int, *rest: Any) -> None:
        if step == 2:
            raise MemoryError
        real(self, step, *rest)

    monkeypatch.setattr(Trainer, "_one_step", fail)
    with pytest.raises(MemoryError):
        trainer.train()
    monkeypatch.undo()
    assert trainer.train().steps == 4 and [r["step"] for r in trainer.history] == [1, 2, 3, 4]


def test_a_step_that_was_left_in_its_middle_is_not_gone_on_from(make, monkeypatch) -> None:
    trainer, real = make(save_steps=1), Trainer._one_step

    def leave(self: Trainer, step: int, *rest: Any) -> None:
        real(self, step, *rest)
        if step == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_one_step", leave)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="train: expected the state after a whole step, got one that was left"):
        trainer.train()
    result = trainer.train(resume=True)
    assert result.steps == 4 and [r["step"] for r in result.history] == [1, 2, 3, 4]


def test_a_second_call_while_the_first_one_runs_is_refused(make) -> None:
    errors: list[str] = []

    class Again(Callback):
        def on_step(self, state: TrainerState) -> None:
            try:
                trainer.train()
            except ConfigError as error:
                errors.append(str(error))

    trainer = make(callbacks=[Again()])
    trainer.train()
    assert len(errors) == 4 and "expected one run of a Trainer at a time" in errors[0]


# --- options --------------------------------------------------------------------------------------------------------------


def test_val_fraction_holds_data_out(make) -> None:
    trainer = make(val_fraction=0.25, seed=3)
    train, held_out = samples().split(0.25, 3)
    assert (len(trainer.train_data), len(trainer.eval_data)) == (6, 2)
    same = zip(trainer.train_data.samples + trainer.eval_data.samples, train.samples + held_out.samples, strict=True)
    assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in same)
    assert trainer.train().eval_loss is not None
    with pytest.raises(ConfigError, match="val_fraction: expected it unset beside eval_data, .*got 0.5 with 2 of 10"):
        make(samples(2), val_fraction=0.5)


def test_max_seq_length_cuts(make) -> None:
    with pytest.warns(LoraCWarning, match="cut to the first 5 tokens"):
        trainer = make(max_seq_length=5)
    assert max(map(len, trainer.train_data.samples)) == 5


# --- what is trained is saved ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens", "norm"])
def test_a_module_that_is_trained_whole_is_saved_with_its_adapter(tiny_model_dir, tmp_path, module: str) -> None:
    model = load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2, modules_to_save=[module])
    config = TrainConfig(**RUN | {"output_dir": str(tmp_path / "out"), "learning_rate": 1e-2})
    Trainer(model, samples(), config).train()
    ids = np.arange(3, 12, dtype=np.int32)
    fresh = load_model(tiny_model_dir, progress=False)
    fresh.load_adapter(tmp_path / "out/checkpoint-4")
    np.testing.assert_array_equal(fresh.decoder.logits(ids), model.decoder.logits(ids))


def test_a_head_is_not_trained_in_two_places(tiny_model_dir) -> None:
    model = load_model(tiny_model_dir, trainable="head", progress=False)
    model.add_adapter(r=2, modules_to_save=["lm_head"])
    names = [p.name for p in model.trainable_parameters()]
    assert sum("lm_head" in name for name in names) == 1


# --- memory ---------------------------------------------------------------------------------------------------------------


def activations(model: Model) -> int:
    return memory_report(model.device)["activations"]["live"]


def test_activation_memory_of_a_model_can_be_freed(model) -> None:
    before = activations(model)
    model.decoder.forward_backward([3] * 60, [0, 60], [3] * 60, np.ones(60, np.float32))
    assert activations(model) > before
    model.free_activations()
    assert activations(model) == before


def test_the_peak_leaves_out_what_an_earlier_pass_has_kept(make, model) -> None:
    gc.collect()  # what other tests have left
    n, others = 60, activations(model)
    alone = make().train().peak_memory_bytes
    ids = [3] * n * 40
    model.decoder.forward_backward(ids, [i * n for i in range(41)], ids, np.ones(len(ids), np.float32))
    held = activations(model)
    again = make().train(overwrite=True)
    assert held > 2**20 and again.peak_memory_bytes < alone + held / 4
    assert activations(model) <= others
    assert again.history[-1]["peak_memory_bytes"] <= again.peak_memory_bytes
