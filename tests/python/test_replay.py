"""Steps that are not finite: they end a run or are left out, are kept, and are computed again with the same bits."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from device_values import SAME_BITS, skip_where_lacking

import lora_c as lc
from lora_c.cli.replay import command
from lora_c.data import Dataset, Sample
from lora_c.data.batching import step_groups
from lora_c.errors import CheckpointError, DivergenceError, LoraCError
from lora_c.notices import LoraCWarning
from lora_c.runs.bad_steps import StepRecord, kept_parameters, read_bad_step, write_bad_step
from lora_c.training.replay import replay
from lora_c.training.skipped_steps import Unfit, skip_or_end
from lora_c.training.trainer import Trainer

STEPS = 6


def samples(n: int = 16) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset([Sample(rng.integers(3, 60, 12).astype(np.int32), np.ones(12, np.float32)) for _ in range(n)])


class Spoil(lc.Callback):
    """Writes a value into a parameter after a step, and takes it out again one step later."""

    def __init__(self, name: str, value: float, after: int) -> None:
        self.name, self.value, self.after = name, value, after
        self.before: np.ndarray[Any, Any] | None = None

    def on_step(self, state: lc.TrainerState) -> None:
        parameter = next(p for p in state.model.trainable_parameters() if self.name in p.name)
        if state.step == self.after:
            self.before = parameter.read()
            parameter.write(np.full(parameter.shape, self.value, np.float32))
        elif state.step == self.after + 1 and self.before is not None:
            parameter.write(self.before)


@pytest.fixture
def run(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Trainer]:
    def make(*callbacks: lc.Callback, load: dict[str, Any] | None = None, adapter: bool = True, **options: Any) -> Trainer:
        model = lc.load_model(tiny_model_dir, progress=False, **load or {})
        if adapter:
            model.add_adapter(r=4, lora_dropout=0.1, seed=7)
        values = {"output_dir": str(tmp_path / "out"), "method": "lora", "max_steps": STEPS, "learning_rate": 1e-3,
                  "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2} | options  # fmt: skip
        return Trainer(model, samples(), lc.TrainConfig(**values), callbacks=callbacks)

    return make


HUGE = ("layers.1.mlp.down_proj.lora_B", 3e38, 2)


def test_a_step_that_is_not_finite_ends_the_run_and_is_kept(run: Callable[..., Trainer], tmp_path: Path) -> None:
    folder = tmp_path / "out/bad-step-3"
    trainer = run(Spoil(*HUGE))
    with pytest.raises(DivergenceError, match=rf"finite loss at step 3, got \w+ \(kept in {folder}: lora-c replay {folder}\)"):
        trainer.train()
    found = replay(folder)
    assert found.step == 3 and found.same_loss and found.same_gradients
    first = found.first_nonfinite
    assert first is not None and first.where == "layers.1.down_proj, forward"
    assert (first.operation, first.result) == ("linear_forward", "y")
    # another order of sums may add infinities of both signs
    assert np.isinf(first.value) or (trainer.model.device not in SAME_BITS and np.isnan(first.value))
    assert 0 <= first.row < read_bad_step(folder).batches[0].n_tokens


@pytest.mark.parametrize("options", [
    {"precision": "exact"}, {"recompute": "layer"}, {"activation_dtype": "bfloat16"},
    {"activation_dtype": "int8"},
    {"method": "qlora", "load": {"quantize": "nf4", "double_quant": False}, "double_quant": False},
], ids=str)  # fmt: skip
def test_the_same_bits_whatever_the_run_had(run: Callable[..., Trainer], tmp_path: Path, options: dict[str, Any]) -> None:
    trainer = run(Spoil(*HUGE), **options)
    skip_where_lacking(trainer.model.device, options.get("activation_dtype", "float32"))
    with pytest.raises(DivergenceError):
        trainer.train()
    found = replay(tmp_path / "out/bad-step-3")
    assert found.same_loss and found.same_gradients and found.first_nonfinite is not None


def test_full_training_too(run: Callable[..., Trainer], tmp_path: Path) -> None:
    spoil = Spoil("layers.1.mlp.gate_proj", 3e38, 2)
    with pytest.raises(DivergenceError):
        run(spoil, load={"trainable": "full"}, adapter=False, method="full").train()
    found = replay(tmp_path / "out/bad-step-3")
    assert found.same_loss and found.same_gradients
    assert found.first_nonfinite is not None and found.first_nonfinite.where == "layers.1.gate_proj, forward"


def test_a_gradient_that_overflows_is_found_in_the_backward_pass(run: Callable[..., Trainer], tmp_path: Path) -> None:
    """A finite loss: only products of the backward pass become too large."""
    spoil = Spoil("layers.0.self_attn.v_proj.lora_A", 1e38, 2)
    trainer = run(spoil)
    for parameter in trainer.parameters:  # B of that matrix stays zero, so that nothing of it is seen in the forward pass
        if "layers.0.self_attn.v_proj.lora_B" in parameter.name:
            zero = parameter

    class Zero(lc.Callback):
        def on_step(self, state: lc.TrainerState) -> None:
            zero.write(np.zeros(zero.shape, np.float32))

    trainer.callbacks.given.append(Zero())
    with pytest.raises(DivergenceError, match="expected finite gradients at step 3|expected a finite loss"):
        trainer.train()
    found = replay(tmp_path / "out/bad-step-3")
    assert found.same_loss and found.same_gradients and found.first_nonfinite is not None


def test_parameters_that_were_not_finite_before_are_named(run: Callable[..., Trainer], tmp_path: Path) -> None:
    with pytest.raises(DivergenceError):
        run(Spoil("layers.0.self_attn.q_proj.lora_B", np.nan, 2)).train()
    first = replay(tmp_path / "out/bad-step-3").first_nonfinite
    assert first is not None and "layers.0.self_attn.q_proj.lora_B.weight, before the step" in first.where
    assert first.operation == "" and np.isnan(first.value)


def test_skipped_steps_change_nothing_and_are_counted(run: Callable[..., Trainer], tmp_path: Path) -> None:
    states: dict[int, list[np.ndarray[Any, Any]]] = {}

    class Keep(lc.Callback):
        def on_step(self, state: lc.TrainerState) -> None:
            states[state.step] = [np.array(p.data) for p in state.model.trainable_parameters()]

    trainer = run(Keep(), Spoil(*HUGE), nonfinite_steps="skip")
    result = trainer.train()
    assert result.steps == STEPS and result.skipped == 1 and np.isfinite(result.train_loss)
    assert trainer.optimizer.step_count == STEPS - 1
    assert [r["step"] for r in trainer.history if "skipped" in r] == [3] and "loss" not in trainer.history[2]
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)) and lines[2]["skipped"] == 1
    names = [p.name for p in trainer.parameters]
    same = {name: np.array_equal(a, b) for name, a, b in zip(names, states[2], states[3], strict=True)}
    assert [name for name, is_same in same.items() if not is_same] == [n for n in names if HUGE[0] in n]  # what was spoiled
    assert not any(np.array_equal(a, b) for a, b in zip(states[3], states[4], strict=True))


def test_a_resumed_run_counts_on(run: Callable[..., Trainer], tmp_path: Path) -> None:
    whole = run(Spoil(*HUGE), nonfinite_steps="skip", save_steps=4)
    whole.train()
    shutil.rmtree(tmp_path / f"out/checkpoint-{STEPS}")
    again = run(nonfinite_steps="skip", save_steps=4)
    assert again.train(resume=True).skipped == 1
    assert again.optimizer.step_count == STEPS - 1
    assert all(np.array_equal(a.data, b.data) for a, b in zip(whole.parameters, again.parameters, strict=True))


def test_too_many_end_the_run_and_three_are_kept(run: Callable[..., Trainer], tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="expected at most 3 steps left out, got one more: expected a gradient norm of"):
        run(skip_grad_norm=1e-9, max_skipped_steps=3).train()
    assert sorted(p.name for p in (tmp_path / "out").glob("bad-step-*")) == ["bad-step-1", "bad-step-2", "bad-step-3"]
    found = replay(tmp_path / "out/bad-step-2")
    assert found.same_loss and found.same_gradients and found.first_nonfinite is None
    assert list(found.gradient_norms.values()) == sorted(found.gradient_norms.values(), reverse=True)


def test_another_model_is_refused(run: Callable[..., Trainer], tmp_path: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(DivergenceError):
        run(Spoil(*HUGE)).train()
    folder = tmp_path / "out/bad-step-3"
    other = lc.load_model(tiny_model_dir, progress=False, quantize="nf4")
    with pytest.raises(CheckpointError, match=r"expected the model of the run \(digest \w+\), got another one; give the base"):
        replay(folder, other)
    file = folder / "step.json"
    values = json.loads(file.read_text())
    values["kernels"]["isa"] = "sse9"
    file.write_text(json.dumps(values))
    with pytest.warns(LoraCWarning, match="the step was computed with isa sse9"):
        replay(folder)


@pytest.mark.parametrize(("break_it", "message"), [
    (lambda folder: (folder / "step.json").unlink(), "expected the folder of a bad step"),
    (lambda folder: (folder / "step.json").write_text("{"), "step.json"),
    (lambda folder: (folder / "step.json").write_text('{"format": 1, "step": "3"}'), "the file is damaged"),
    (lambda folder: (folder / "step.json").write_text('{"format": 2}'), "expected format 1"),
    (lambda folder: (folder / "batches.safetensors").unlink(), "copy the whole folder"),
    (lambda folder: (folder / "parameters.safetensors").write_bytes(b"x" * 40), "parameters.safetensors"),
])  # fmt: skip
def test_damaged_folders_are_refused(
    run: Callable[..., Trainer], tmp_path: Path, break_it: Callable[[Path], Any], message: str
) -> None:
    with pytest.raises(DivergenceError):
        run(Spoil(*HUGE)).train()
    folder = tmp_path / "out/bad-step-3"
    break_it(folder)
    with pytest.raises(CheckpointError, match=message):
        replay(folder)


@pytest.mark.parametrize("change", [
    {"adapters": {"lora": 5}}, {"base": {}}, {"base": {"path": "x", "load": []}}, {"base": {"path": "a\0b", "load": {}}},
    {"kernels": {}}, {"settings": {"nothing": 1}}, {"adapters": {"a": {"peft_type": "LORA", "r": 1 << 20}}},
], ids=str)  # fmt: skip
def test_what_no_run_writes_is_one_line(run: Callable[..., Trainer], tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DivergenceError):
        run(Spoil(*HUGE)).train()
    file = tmp_path / "out/bad-step-3/step.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(LoraCError):
        replay(tmp_path / "out/bad-step-3")


@pytest.mark.parametrize("config", [
    lc.BottleneckConfig(bottleneck_size=4), lc.IA3Config(), lc.PromptTuningConfig(num_virtual_tokens=3),
    lc.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True), None,
], ids=lambda c: type(c).__name__)  # fmt: skip
def test_adapters_of_every_kind(tiny_model_dir: Path, tmp_path: Path, config: Any) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(lc.LoraConfig(r=2) if config is not None else lc.LoraConfig(r=2, target_modules=None), "lora")
    if config is not None:
        model.add_adapter(config, "other")
        model.set_adapter(["lora", "other"])
    options: dict[str, Any] = {"output_dir": str(tmp_path), "method": "lora", "max_steps": 1, "skip_grad_norm": 1e-9}
    Trainer(model, samples(), lc.TrainConfig(**options)).train()
    found = replay(tmp_path / "bad-step-1")
    assert found.same_loss and found.same_gradients and found.first_nonfinite is None


def test_watching_changes_no_bit_and_can_be_switched(tiny_model_dir: Path) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=4)
    ids, ends, weight = np.arange(3, 15, dtype=np.int32), np.array([0, 12], np.int32), np.ones(12, np.float32)
    weight[-1] = 0

    def step() -> tuple[float, list[bytes]]:
        for parameter in model.trainable_parameters():
            parameter.zero_grad()
        loss = model.decoder.forward_backward(ids, ends, np.roll(ids, -1), weight)
        return loss, [p.read_grad().tobytes() for p in model.trainable_parameters()]

    plain = step()
    model.decoder.watching = True
    assert model.decoder.watching and step() == plain and model.decoder.first_nonfinite is None
    model.decoder.watching = False
    assert step() == plain and model.decoder.first_nonfinite is None
    with pytest.raises(TypeError, match="watching: expected True or False"):
        model.decoder.watching = 1  # type: ignore[assignment]


def _train_one_step(model: lc.Model, folder: Path, method: str = "lora", data: Dataset | None = None) -> Trainer:
    """A run whose only step is left out and kept."""
    options: dict[str, Any] = {"output_dir": str(folder), "method": method, "max_steps": 1, "skip_grad_norm": 1e-9}
    trainer = Trainer(model, samples() if data is None else data, lc.TrainConfig(**options))
    trainer.train()
    return trainer


@pytest.mark.parametrize("frozen", [
    lc.IA3Config(), lc.BottleneckConfig(bottleneck_size=4), lc.PromptTuningConfig(num_virtual_tokens=3),
    lc.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True),
    lc.LoraConfig(r=2, target_modules=None, use_dora=True, modules_to_save=["norm"], trainable_token_indices=[3, 5]),
    lc.LoraConfig(r=2, init_lora_weights="pissa"),
], ids=lambda c: type(c).__name__)  # fmt: skip
def test_a_part_that_is_not_trained(tiny_model_dir: Path, tmp_path: Path, frozen: Any) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(frozen, "frozen")
    rng = np.random.default_rng(1)
    for parameter in model.trainable_parameters():
        parameter.write(parameter.read() + rng.standard_normal(parameter.shape, np.float32) * np.float32(0.01))
    model.save_adapter(tmp_path / "saved")
    model.delete_adapter("frozen")
    model.load_adapter(tmp_path / "saved", "frozen", is_trainable=False)
    trained = lc.IA3Config() if isinstance(frozen, lc.LoraConfig) else lc.LoraConfig(r=2)
    model.add_adapter(trained, "trained")
    model.set_adapter(["frozen", "trained"])
    trainer = _train_one_step(model, tmp_path / "out")
    names = [parameter.name for parameter in trainer.parameters]
    assert 0 < len(names) < len(model.adapter.parameters())  # type: ignore[union-attr]
    found = replay(tmp_path / "out/bad-step-1")
    assert found.same_loss and found.same_gradients and found.first_nonfinite is None
    assert set(found.gradient_norms) <= set(names)


def test_a_text_whose_tokenizer_has_gone(tiny_model_dir: Path, tmp_path: Path) -> None:
    """What an adapter began with is not drawn again."""
    shutil.copytree(tiny_model_dir, tmp_path / "reader")
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(lc.PromptTuningConfig(
        num_virtual_tokens=3, prompt_tuning_init="TEXT", prompt_tuning_init_text="hello",
        tokenizer_name_or_path=str(tmp_path / "reader"),
    ))  # fmt: skip
    _train_one_step(model, tmp_path / "out")
    shutil.rmtree(tmp_path / "reader")
    found = replay(tmp_path / "out/bad-step-1")
    assert found.same_loss and found.same_gradients


def test_an_adapter_of_a_classifier_put_on_a_language_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    classifier = lc.load_model(tiny_model_dir, progress=False, task_type="SEQ_CLS", num_labels=3)
    classifier.add_adapter(r=2)
    classifier.save_adapter(tmp_path / "saved")
    model = lc.load_model(tiny_model_dir, progress=False)
    model.load_adapter(tmp_path / "saved")
    whole = [samples(6)[i] for i in range(6)]
    data = Dataset([Sample(sample.input_ids, np.zeros(12, np.float32), label=i % 3) for i, sample in enumerate(whole)])
    _train_one_step(model, tmp_path / "out", data=data)
    found = replay(tmp_path / "out/bad-step-1")
    assert found.same_loss and found.same_gradients


def _with_a_base_of_its_own(model: lc.Model, saved: Path) -> None:
    model.add_adapter(r=2, init_lora_weights="pissa")
    model.save_adapter(saved)
    model.delete_adapter()


def _with_names_of_other_models(model: lc.Model, saved: Path) -> None:
    model.add_adapter(r=2, target_modules=["q_proj"])
    model.save_adapter(saved)
    model.delete_adapter()
    file = saved / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"exclude_modules": ["vision_tower"]}))


@pytest.mark.parametrize(("save", "message"), [
    (_with_a_base_of_its_own, "a model as it was then, with its adapters"),
    (_with_names_of_other_models, "an adapter 'default' that can be made of its options, got .* 'vision_tower'"),
])  # fmt: skip
def test_an_adapter_that_only_its_file_makes(
    tiny_model_dir: Path, tmp_path: Path, save: Callable[[lc.Model, Path], None], message: str
) -> None:
    def loaded() -> lc.Model:
        model = lc.load_model(tiny_model_dir, progress=False, quantize="nf4")
        if not (tmp_path / "saved").exists():
            save(model, tmp_path / "saved")
        model.load_adapter(tmp_path / "saved")
        return model

    _train_one_step(loaded(), tmp_path / "out", method="qlora")
    with pytest.raises(CheckpointError, match=message):
        replay(tmp_path / "out/bad-step-1")
    found = replay(tmp_path / "out/bad-step-1", loaded())
    assert found.same_loss and found.same_gradients


def test_a_base_that_has_moved(run: Callable[..., Trainer], tmp_path: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(DivergenceError):
        run(Spoil(*HUGE)).train()
    folder, moved = tmp_path / "out/bad-step-3", tmp_path / "moved"
    shutil.copytree(tiny_model_dir, moved)
    file = folder / "step.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"base": values["base"] | {"path": str(tmp_path / "gone")}}))
    with pytest.raises(LoraCError, match="gone"):
        replay(folder)
    found = replay(folder, moved)
    assert found.same_loss and found.same_gradients
    file.write_text(json.dumps(values | {"base": {}}))
    error = CliRunner().invoke(command, [str(folder), "--model", str(moved)], standalone_mode=False).exception
    assert isinstance(error, CheckpointError) and "expected a step as a run writes it" in str(error)


def test_a_step_on_another_device(run: Callable[..., Trainer], tmp_path: Path, fake: str) -> None:
    with pytest.raises(DivergenceError):
        run(Spoil(*HUGE), load={"device": fake}).train()
    found = replay(tmp_path / "out/bad-step-3")
    assert found.same_loss and found.same_gradients and found.first_nonfinite is not None


def test_keeping_a_step_copies_no_set_of_arrays(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=256)
    trainer = _train_one_step(model, tmp_path / "out")
    total = sum(parameter.data.nbytes for parameter in trainer.parameters)
    largest = max(parameter.data.nbytes for parameter in trainer.parameters)
    assert total > 8 * largest
    tracemalloc.start()
    try:
        record = StepRecord.of(trainer, 0, 1.0, "expected nothing")
        write_bad_step(tmp_path / "kept", record, [], kept_parameters(model).values())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * largest


@pytest.mark.parametrize("is_finite", [True, False])
def test_what_is_done_does_not_depend_on_the_words(run: Callable[..., Trainer], tmp_path: Path, is_finite: bool) -> None:
    trainer = run()
    said: list[str] = []
    progress: Any = SimpleNamespace(message=said.append)
    groups = step_groups(len(trainer.train_data), 0, 2, 1, seed=0)[1]
    problem = Unfit("too much", is_finite)
    if is_finite:
        skip_or_end(trainer, 0, groups, 1.0, problem, progress)
        assert [text.partition(" (kept")[0] for text in said] == ["step 1 is left out: too much"]
    else:
        with pytest.raises(DivergenceError, match=r"^too much \(kept in"):
            skip_or_end(trainer, 0, groups, 1.0, problem, progress)
