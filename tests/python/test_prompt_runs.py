"""Runs of prompt tuning and prefix tuning, alone and beside LoRA: what changes no bit, resuming, forecasts, records."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_values import skip_where_lacking

import lora_c as lc
from lora_c import _core
from lora_c.configs import ADAPTER_KINDS
from lora_c.data import Dataset, Sample
from lora_c.data.batching import PackedBatch
from lora_c.errors import AdapterError, CheckpointError
from lora_c.notices import LoraCWarning
from lora_c.runs.digests import model_digest
from lora_c.runs.model_card import model_card
from lora_c.runs.record import describe_run
from lora_c.training.memory import forecast, largest_micro_batch
from lora_c.training.replay import FirstNonFinite, _token

TABLE = Path(__file__).parents[2] / "docs/RESUME.md"
RUN: dict[str, Any] = {
    "max_steps": 6, "save_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "recompute": "none",
    "precision": "exact",
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "prompt": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4},
    "prefix": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4},
    "projection": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "prefix_projection": True},
}
OTHER: dict[str, dict[str, Any]] = {
    "PromptTuningConfig": {
        "num_virtual_tokens": 5, "seed": 1, "prompt_tuning_init": "SAMPLE_VOCAB", "prompt_tuning_init_text": "w3",
        "tokenizer_name_or_path": "",
    },
    "PrefixTuningConfig": {
        "num_virtual_tokens": 5, "seed": 1, "prefix_projection": True, "encoder_hidden_size": 5, "init_weights": "zero",
    },
}  # fmt: skip
# What a field needs beside it, before and after the change.
BESIDE: dict[str, dict[str, Any]] = {
    "prompt_tuning_init_text": {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "w4 w5"},
    "tokenizer_name_or_path": {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "w4 w5"},
    "encoder_hidden_size": {"prefix_projection": True},
}


def samples(n: int = 8, length: int = 12) -> Dataset:
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, 60, length - i % 3).astype(np.int32) for i in range(n)]
    return Dataset([Sample(i, np.ones(len(i), np.float32)) for i in ids])


@pytest.fixture
def make(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., lc.Trainer]:
    def trainer(
        kind: dict[str, Any], lora: bool = False, data: Dataset | None = None, device: str = "cpu", **options: Any
    ) -> lc.Trainer:
        model = lc.load_model(tiny_model_dir, progress=False, device=device)
        model.add_adapter(name="virtual", **kind)
        if lora:
            model.add_adapter(lc.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.1), "lora")
            model.set_adapter(["lora", "virtual"])
        config = lc.TrainConfig(**{"output_dir": str(tmp_path / "out")} | RUN | options)
        return lc.Trainer(model, data or samples(), config)

    return trainer


def arrays(trainer: lc.Trainer) -> list[np.ndarray]:
    return [np.array(p.data) for p in trainer.parameters]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_and_only_the_adapter_changes(make: Callable[..., lc.Trainer], kind: str, lora: bool) -> None:
    trainer = make(KINDS[kind], lora, max_steps=40, learning_rate=0.1)
    weights = {name: np.array(weight) for name, weight in trainer.model.weights.items()}
    trainer.train()
    losses = [row["loss"] for row in trainer.history if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]
    assert all(np.array_equal(weights[name], weight) for name, weight in trainer.model.weights.items())


@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_no_bit(make: Callable[..., lc.Trainer], tmp_path: Path, kind: str) -> None:
    trainer = make(KINDS[kind], True)
    trainer.train()
    recomputed = make(KINDS[kind], True, recompute="layer", output_dir=str(tmp_path / "layer"))
    recomputed.train()
    assert same(arrays(trainer), arrays(recomputed))
    _core.set_num_threads(1)
    try:
        alone = make(KINDS[kind], True, output_dir=str(tmp_path / "alone"))
        alone.train()
    finally:
        _core.set_num_threads(0)
    assert same(arrays(trainer), arrays(alone))


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_like_one_batch(make: Callable[..., lc.Trainer], tmp_path: Path, kind: str) -> None:
    trainer = make(KINDS[kind])
    trainer.train()
    parts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    accumulated = make(KINDS[kind], **parts, output_dir=str(tmp_path / "parts"))
    accumulated.train()
    for one, other in zip(arrays(trainer), arrays(accumulated), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_rounded_activations_keep_the_loss(make: Callable[..., lc.Trainer], kind: str, dtype: Any) -> None:
    model = make(KINDS[kind]).model
    skip_where_lacking(model.device, dtype)
    decoder = model.decoder
    ids = samples(1).samples[0].input_ids
    batch = (ids, [0, len(ids)], np.roll(ids, -1), np.ones(len(ids), np.float32))
    loss = decoder.forward_backward(*batch)
    decoder.activation_dtype = dtype
    assert decoder.forward_backward(*batch) == loss


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_whole_run(make: Callable[..., lc.Trainer], tmp_path: Path, kind: str) -> None:
    whole = make(KINDS[kind], True, output_dir=str(tmp_path / "whole"))
    whole.train()
    first = make(KINDS[kind], True)
    first.train()
    again = make(KINDS[kind], True)
    again.train(resume=str(tmp_path / "out/checkpoint-3"))
    assert same(arrays(again), arrays(whole))


@pytest.mark.parametrize("kind", KINDS)
def test_on_another_device_it_is_the_same_run(make: Callable[..., lc.Trainer], tmp_path: Path, kind: str, fake: str) -> None:
    here, there = (make(KINDS[kind], True, device=device, output_dir=str(tmp_path / device)) for device in ("cpu", fake))
    for trainer in (here, there):
        trainer.train()
    assert same(arrays(here), arrays(there)) and there.model.device == fake
    answers = [trainer.model.generate("w3 w4", max_new_tokens=9, ignore_eos=True) for trainer in (here, there)]
    assert answers[0] == answers[1]
    files = [(tmp_path / device / "checkpoint-6/virtual/adapter_model.safetensors").read_bytes() for device in ("cpu", fake)]
    assert files[0] == files[1]


def rows() -> list[tuple[str, str, str]]:
    """(class, field, rule) of the table in the documentation."""
    found, kind = [], ""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\| (\w*) ?\| `(.+?)` \| (.+?) \|", line):
            kind = match[1] or kind
            found.append((kind, match[2], match[3]))
    return [row for row in found if row[0] in OTHER]


def test_every_field_is_placed() -> None:
    for kind in (lc.PromptTuningConfig, lc.PrefixTuningConfig):
        assert [field for name, field, _ in rows() if name == kind.__name__] == list(kind.model_fields)
        assert set(OTHER[kind.__name__]) == set(kind.model_fields)


@pytest.mark.parametrize(("kind", "field", "rule"), rows(), ids=[f"{k}.{f}" for k, f, _ in rows()])
def test_a_changed_field_is_refused(
    make: Callable[..., lc.Trainer], tiny_model_dir: Path, tmp_path: Path, kind: str, field: str, rule: str
) -> None:
    name = next(name for name, cls in ADAPTER_KINDS.items() if cls.__name__ == kind)
    before = {"peft_type": name, "num_virtual_tokens": 4} | BESIDE.get(field, {})
    other = str(tiny_model_dir) if field == "tokenizer_name_or_path" else OTHER[kind][field]
    make(before, max_steps=3).train()
    assert rule.startswith("refused")
    with pytest.raises(CheckpointError, match=rf"{kind}\.{field} .* -> "):
        make(before | {field: other}, max_steps=3).train(resume=str(tmp_path / "out/checkpoint-3"))


def test_a_frozen_part_of_a_stack_is_digested(tiny_model_dir: Path, tmp_path: Path) -> None:
    digests = []
    for seed in (0, 0, 1):
        model = lc.load_model(tiny_model_dir, progress=False)
        model.add_adapter(lc.PrefixTuningConfig(num_virtual_tokens=3, seed=seed))
        model.save_adapter(tmp_path / "prefix")
        model.delete_adapter()
        model.load_adapter(tmp_path / "prefix", "prefix", is_trainable=False)
        model.add_adapter(lc.LoraConfig(r=2), "lora")
        model.set_adapter(["lora", "prefix"])
        digests.append(model_digest(model))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_one_is_there_and_stays(
    make: Callable[..., lc.Trainer], tmp_path: Path, kind: str, tiny_model_dir: Path
) -> None:
    """LoRA is trained under it, and no gradient of its rows goes anywhere else: those of LoRA are the same."""
    trainer = make(KINDS[kind], True)
    model = trainer.model
    both = gradients(model)
    model.set_adapter("virtual")
    model.save_adapter(tmp_path / "virtual")
    model.load_adapter(tmp_path / "virtual", "frozen", is_trainable=False)
    model.set_adapter(["lora", "frozen"])
    alone = gradients(model)
    assert len(alone) == 8 < len(both)
    for name, gradient in alone.items():
        np.testing.assert_allclose(gradient, both[name], atol=1e-6 * np.abs(gradient).max(), err_msg=name)


def gradients(model: lc.Model) -> dict[str, np.ndarray]:
    ids = samples(1).samples[0].input_ids
    for parameter in model.trainable_parameters():
        parameter.zero_grad()
    batch = (ids, [0, 5, len(ids)], np.roll(ids, -1), np.ones(len(ids), np.float32))
    model.decoder.forward_backward(*batch, dropout_step=1)
    return {parameter.name: np.array(parameter.grad) for parameter in model.trainable_parameters()}


def test_the_token_of_a_replayed_row_is_the_callers(make: Callable[..., lc.Trainer]) -> None:
    """Virtual tokens stand before each sequence of a pass, and are none of the batch's."""
    model = make(KINDS["prompt"]).model
    batch = PackedBatch(*(np.array(a, np.int32) for a in ([5, 6, 7, 8], [0, 1, 4], [0] * 4)), np.ones(4, np.float32))
    first = FirstNonFinite("", "mlp_forward", "h", 0, 0, 0, float("nan"), None)
    tokens = [_token(batch, model, replace(first, row=row)) for row in range(12)]
    assert tokens == [None] * 4 + ["w5"] + [None] * 4 + ["w6", "w7", "w8"]
    assert _token(batch, model, replace(first, row=4, result="dW")) is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_forecast_counts_them(make: Callable[..., lc.Trainer], kind: str) -> None:
    trainer = make(KINDS[kind], recompute="layer")
    assert largest_micro_batch(trainer) == 2 * 12 + 2 * 4
    plan = forecast(trainer)
    trainer.model.free_activations()
    live = _core.memory_report()["activations"]["live"]
    ids = np.concatenate([s.input_ids for s in samples().samples if len(s) == 12][:2])
    with trainer.settings():
        trainer.model.decoder.forward_backward(ids, [0, 12, 24], np.roll(ids, -1), np.ones(24, np.float32))
    assert _core.memory_report()["activations"]["live"] - live == plan.activations


def test_samples_are_cut_to_what_is_left_of_the_context(make: Callable[..., lc.Trainer]) -> None:
    data = samples(4, 40)
    with pytest.warns(LoraCWarning, match=r"train_data: \d of 4 samples cut to the first 14 tokens"):
        trainer = make({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 50}, data=data)
    assert max(map(len, trainer.train_data.samples)) == 14
    trainer.train()
    with pytest.raises(AdapterError, match="num_virtual_tokens: expected fewer than the model's context of 64"):
        make({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 64})


def test_the_record_and_the_card_name_the_kind(make: Callable[..., lc.Trainer], tmp_path: Path) -> None:
    trainer = make(KINDS["projection"])
    trainer.train()
    card = model_card(tmp_path, trainer, describe_run(trainer, "base"))
    assert "PREFIX_TUNING" in card and "num_virtual_tokens 4" in card and "prefix_projection True" in card
    state = json.loads((tmp_path / "out/checkpoint-6/trainer_state.json").read_text())
    assert state["run"]["options"]["PrefixTuningConfig.num_virtual_tokens"] == 4
