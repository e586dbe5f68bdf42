"""Runs with each optimizer: resuming, other devices, checkpoints of others, LoRA+, NEFTune, and what the forecast says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_values import write_values

import lora_c as lc
from lora_c import reference
from lora_c.data import Dataset, Sample
from lora_c.errors import CheckpointError, ConfigError
from lora_c.training.optimizers import checkpoint_state_bytes, lr_ratios, state_bytes

# Where the folder of temporary files is a tmpfs.
pytestmark = pytest.mark.filterwarnings("ignore:paged_dir. .* lies in memory:lora_c.notices.LoraCWarning")

OPTIMS: dict[str, dict[str, Any]] = {
    "adamw_torch": {}, "adamw_8bit": {"min_8bit_size": 64}, "paged_adamw_32bit": {}, "paged_adamw_8bit": {"min_8bit_size": 64},
    "sgd": {"momentum": 0.9, "nesterov": True}, "lion": {"beta2": 0.99}, "adafactor": {"beta1": 0.9}, "muon": {"ns_steps": 4},
}  # fmt: skip
RUN: dict[str, Any] = {
    "method": "full",
    "max_steps": 4,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "save_steps": 2,
}


def samples(n: int = 8) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(
        [Sample(i, np.ones(len(i), np.float32)) for i in (rng.integers(3, 60, 12).astype(np.int32) for _ in range(n))]
    )


@pytest.fixture
def trainer(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., lc.Trainer]:
    def make(out: str = "out", device: str = "cpu", lora: dict[str, Any] | None = None, **train: Any) -> lc.Trainer:
        model = lc.load_model(tiny_model_dir, progress=False, device=device, trainable="none" if lora else "full")
        if lora:
            model.add_adapter(lc.LoraConfig(**lora))
            train = {"method": "lora"} | train
        return lc.Trainer(model, samples(), lc.TrainConfig(**{"output_dir": str(tmp_path / out)} | RUN | train))

    return make


def values(trainer: lc.Trainer) -> list[np.ndarray]:
    return [np.array(p.data) for p in trainer.parameters]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("optim", OPTIMS)
def test_a_resumed_run_has_the_bits_of_a_whole_one(trainer: Callable[..., lc.Trainer], tmp_path: Path, optim: str) -> None:
    options = {"optim": optim, "optim_args": OPTIMS[optim], "neftune_noise_alpha": 5.0}
    whole = trainer(**options)
    before = values(whole)
    whole.train()
    assert not any(np.array_equal(a, b) for a, b in zip(before, values(whole), strict=True) if a.ndim == 2)
    resumed = trainer("again", **options)
    assert resumed.train(resume=str(tmp_path / "out" / "checkpoint-2")).steps == 4
    assert same(values(whole), values(resumed))
    assert math.isfinite(whole.result.train_loss)


@pytest.mark.parametrize("optim", OPTIMS)
def test_another_device_gives_the_same_bits(trainer: Callable[..., lc.Trainer], fake: str, optim: str) -> None:
    options = {"optim": optim, "optim_args": OPTIMS[optim], "neftune_noise_alpha": 5.0}
    here, there = trainer("here", **options), trainer("there", fake, **options)
    here.train()
    there.train()
    assert same(values(here), values(there))


def test_a_checkpoint_of_another_optimizer_is_refused_by_name(trainer: Callable[..., lc.Trainer], tmp_path: Path) -> None:
    trainer(optim="lion").train()
    start = str(tmp_path / "out" / "checkpoint-2")
    with pytest.raises(CheckpointError, match="optim 'lion' -> 'sgd'"):
        trainer("a", optim="sgd").train(resume=start)
    with (
        pytest.warns(lc.LoraCWarning, match="resumed with changes"),
        pytest.raises(CheckpointError, match="expected the state of optim sgd, got one of lion; resume with optim lion"),
    ):
        trainer("b", optim="sgd").train(resume=start, allow_changes=True)


@pytest.mark.parametrize(("first", "second"), [("adamw_torch", "paged_adamw_32bit"), ("paged_adamw_8bit", "adamw_8bit")])
def test_a_state_moves_between_memory_and_file(
    trainer: Callable[..., lc.Trainer], tmp_path: Path, first: str, second: str
) -> None:
    whole = trainer(optim=first)
    whole.train()
    moved = trainer("again", optim=second, **({"paged_dir": str(tmp_path)} if second.startswith("paged_") else {}))
    moved.train(resume=str(tmp_path / "out" / "checkpoint-2"))
    assert same(values(whole), values(moved))


@pytest.mark.parametrize(
    ("optim", "options", "message"),
    [
        ("adamw_torch", {"momentum": 0.9}, "optim_args: expected none with adamw_torch, got momentum"),
        ("sgd", {"beta1": 0.9}, "optim_args: expected momentum, dampening, nesterov alone with sgd, got beta1"),
        ("sgd", {"nesterov": "true"}, "nesterov: expected momentum above 0"),
        ("sgd", {"momentum": 1.0}, "momentum: expected less than 1, got 1"),
        ("sgd", "momentum", "optim_args: expected name=value,name=value with each name once, got 'momentum'"),
        ("lion", {"beta1": "x"}, "beta1: expected a number, got 'x'"),
        ("adafactor", {"warmup_init": True}, "warmup_init: expected relative_step beside it"),
        ("adafactor", {"relative_step": "maybe"}, "relative_step: expected true or false, got 'maybe'"),
        ("adafactor", {"decay_rate": 0.0}, "decay_rate: expected less than 0, got 0"),
        ("muon", {"ns_steps": 2.5}, "ns_steps: expected a whole number, got 2.5"),
        ("muon", {"adjust_lr_fn": "x"}, "adjust_lr_fn: expected original or match_rms_adamw, got 'x'"),
        ("adamw", {}, "optim: expected 'adamw_torch'"),
    ],
)
def test_options_that_an_optimizer_has_not_are_refused(optim: str, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lc.TrainConfig(optim=optim, optim_args=options)


def test_names_and_options_as_transformers_writes_them() -> None:
    assert lc.TrainConfig(optim="adamw_bnb_8bit").optim == "adamw_8bit"
    assert lc.TrainConfig(optim="lion_32bit").optim == "lion"
    given = lc.TrainConfig(optim="sgd", optim_args="momentum=0.9, nesterov=True")
    assert given.optim_args == {"momentum": 0.9, "nesterov": True}
    assert lc.TrainConfig(**given.model_dump()) == given


def test_a_folder_that_cannot_be_written_is_named(trainer: Callable[..., lc.Trainer], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="paged_dir: expected one that can be written, got /proc/none .*; choose another folder"
    ):
        trainer(optim="paged_adamw_32bit", paged_dir="/proc/none")


@pytest.mark.parametrize("optim", OPTIMS)
def test_the_forecast_is_what_the_state_takes(trainer: Callable[..., lc.Trainer], optim: str) -> None:
    before = lc.memory_report()["optimizer"]["live"]
    made = trainer(optim=optim, optim_args=OPTIMS[optim])
    taken = lc.memory_report()["optimizer"]["live"] - before
    whole = checkpoint_state_bytes(made.config, made.parameters)
    state = made.optimizer.state_dict()
    assert whole == sum(a.nbytes for name in made.optimizer.moment_names for a in state[name] if a is not None)
    assert taken == (0 if optim.startswith("paged_") else whole)  # a file is no memory
    assert state_bytes(made.config, made.parameters) <= whole


def test_loraplus_has_the_groups_of_peft(trainer: Callable[..., lc.Trainer]) -> None:
    lora = {"r": 2, "target_modules": ["q_proj", "embed_tokens"], "init_lora_weights": True}
    made = trainer(lora=lora, loraplus_lr_ratio=16.0, loraplus_lr_embedding=1e-5, learning_rate=1e-3)
    ratios = dict(zip((p.name for p in made.parameters), lr_ratios(made.config, made.parameters) or [], strict=True))
    assert {r for n, r in ratios.items() if "embed_tokens" in n} == {1e-5 / 1e-3}
    assert {r for n, r in ratios.items() if "q_proj" in n and "lora_A" in n} == {1.0}
    assert {r for n, r in ratios.items() if "q_proj" in n and "lora_B" in n} == {16.0}
    assert lr_ratios(trainer(lora=lora).config, made.parameters) is None


def test_loraplus_moves_b_by_its_ratio(trainer: Callable[..., lc.Trainer]) -> None:
    """The first step of AdamW is the rate in the direction of the gradient, whose B is zero and whose A is the same."""
    lora = {"r": 2, "target_modules": ["q_proj"]}
    moved = []
    for ratio in (None, 8.0):
        made = trainer(f"r{ratio}", lora=lora, loraplus_lr_ratio=ratio, max_steps=1, lr_scheduler_type="constant")
        made.train()
        moved.append([np.array(p.data) for p in made.parameters if "lora_B" in p.name])
    for plain, plus in zip(*moved, strict=True):
        np.testing.assert_allclose(plus, 8.0 * plain, rtol=1e-6)


def batch() -> tuple[Any, ...]:
    ids = np.arange(3, 23, dtype=np.int32)
    starts = np.array([0, 4, 20], np.int32)
    return ids, starts, np.roll(ids, -1), np.ones(20, np.float32)


def test_noise_is_drawn_in_training_alone_and_again_for_the_same_step(tiny_model_dir: Path) -> None:
    model = lc.load_model(tiny_model_dir, progress=False, trainable="full")
    decoder, losses = model.decoder, {}
    quiet = decoder.forward_backward(*batch())
    decoder.noise = 30.0, 7
    with pytest.raises(ValueError, match="dropout_step: expected the number of the training step with lora_dropout or noise"):
        decoder.forward_backward(*batch())
    for recompute in ("none", "attention", "layer"):
        decoder.recompute = recompute
        for threads in (1, 2):
            lc.set_num_threads(threads)
            losses[recompute, threads] = [decoder.forward_backward(*batch(), dropout_step=s) for s in (0, 1, 0)]
    assert len({tuple(x) for x in losses.values()}) == 1
    first, second, again = losses["none", 1]
    assert first == again
    assert len({quiet, first, second}) == 3
    ids, starts, targets, weight = batch()
    assert decoder.loss(ids, starts, targets, weight) == quiet
    decoder.noise = 0.0, 7
    assert decoder.forward_backward(*batch()) == quiet
    for bad in ((-1.0, 0), (math.inf, 0)):
        with pytest.raises(ValueError, match="alpha: expected a finite number >= 0"):
            decoder.noise = bad
    with pytest.raises(TypeError, match="noise: expected"):
        decoder.noise = 3.0


def test_noise_has_the_same_bits_with_any_number_of_threads_and_recomputed(tiny_model_dir: Path) -> None:
    """Many segments of different lengths, over more rows than one task has."""
    model = lc.load_model(tiny_model_dir, progress=False, trainable="full")
    decoder, rng = model.decoder, np.random.default_rng(0)
    starts = np.append(0, np.cumsum(rng.integers(2, 60, 80))).astype(np.int32)
    n = int(starts[-1])
    ids = rng.integers(3, 60, n).astype(np.int32)
    decoder.noise = 9.0, 5
    found, threads = set(), lc.get_num_threads()
    for recompute in ("none", "attention", "layer"):
        decoder.recompute = recompute
        for count in (1, 2, 3, 4):
            lc.set_num_threads(count)
            for parameter in model.trainable_parameters():
                parameter.zero_grad()
            loss = decoder.forward_backward(ids, starts, np.roll(ids, -1), np.ones(n, np.float32), dropout_step=2)
            found.add((loss, *(parameter.grad.tobytes() for parameter in model.trainable_parameters())))
    lc.set_num_threads(threads)
    assert len(found) == 1


@pytest.mark.parametrize("seed", [0, 2**40 + 5])
def test_noise_is_what_the_paper_adds(tiny_model_dir: Path, seed: int) -> None:
    """The tokens of the batch differ, so that the rows of the embedding can be changed in place of its outputs."""
    model = lc.load_model(tiny_model_dir, progress=False, trainable="full")
    ids, starts, targets, weight = batch()
    model.decoder.noise = 30.0, seed
    noisy = model.decoder.forward_backward(ids, starts, targets, weight, dropout_step=3)
    embedding = model.weights["embed_tokens"]
    noise = reference.neftune_noise(30.0, seed, (3 << 20) + 0xFFFFF, starts, embedding.shape[1])
    assert np.abs(noise).max() > 1
    write_values(embedding, embedding.data[ids] + noise.astype(np.float32), where=ids)
    assert model.decoder.loss(ids, starts, targets, weight) == pytest.approx(noisy, rel=1e-6)


def test_a_run_leaves_no_noise_behind(trainer: Callable[..., lc.Trainer]) -> None:
    made = trainer(neftune_noise_alpha=5.0)
    made.train()
    assert made.model.decoder.noise == (0.0, 0)
    quiet = trainer("quiet")
    quiet.train()
    assert not same(values(made), values(quiet))
