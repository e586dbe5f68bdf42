"""A resumed run is the run that wrote the checkpoint, or it is refused by name: docs/RESUME.md, field by field."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_values import write_values

import lora_c as lc
from lora_c.checkpoints.safetensors_writer import TensorEntry
from lora_c.configs import ADAPTER_KINDS
from lora_c.data import Dataset, Sample
from lora_c.errors import CheckpointError, ConfigError, DivergenceError
from lora_c.notices import LoraCWarning
from lora_c.training.trainer import Trainer

TABLE = Path(__file__).parents[2] / "docs/RESUME.md"
TRAIN: dict[str, Any] = {
    "method": "lora", "max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
    "recompute": "none",
}  # fmt: skip
LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 1]}
# One other value for every field; those that need more beside them stand for a run that has it.
OTHER_TRAIN: dict[str, Any] = {
    "output_dir": "elsewhere", "method": "qlora", "num_train_epochs": 3.0, "max_steps": 6, "learning_rate": 1e-3,
    "lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"num_cycles": 2.0}, "warmup_ratio": 0.5,
    "warmup_steps": 1, "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2, "max_seq_length": 64, "max_grad_norm": 0.0,
    "optim": "lion", "optim_args": {"momentum": 0.5}, "paged_dir": "elsewhere",
    "weight_decay": 0.1, "adam_beta1": 0.8,
    "adam_beta2": 0.99, "adam_epsilon": 1e-6, "loraplus_lr_ratio": 4.0,
    "loraplus_lr_embedding": 1e-5, "neftune_noise_alpha": 5.0, "seed": 1, "recompute": "layer", "activation_dtype": "bfloat16",
    "activation_offload": True,
    "memory_limit": 100.0, "precision": "exact", "val_fraction": 0.1, "eval_steps": 1, "eval_batch_tokens": 16,
    "load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True, "early_stopping_patience": 9,
    "early_stopping_threshold": 0.1, "nonfinite_steps": "skip", "skip_grad_norm": 1e9, "max_skipped_steps": 3,
    "save_steps": 1, "save_total_limit": 7, "logging_steps": 2, "report_to": ["tensorboard"], "quant_type": "fp4",
    "double_quant": False, "block_size": 32,
}  # fmt: skip
OTHER_LORA: dict[str, Any] = {
    "r": 3, "lora_alpha": 5, "lora_dropout": 0.1, "target_modules": ["q_proj"], "exclude_modules": ["k_proj"],
    "use_rslora": True, "rank_pattern": {"q_proj": 1}, "alpha_pattern": {"q_proj": 3}, "layers_to_transform": [0],
    "layers_pattern": "layers", "use_dora": True, "bias": "all", "modules_to_save": ["norm"], "trainable_token_indices": [3],
    "init_lora_weights": "gaussian", "loftq_config": {"loftq_iter": 2}, "fan_in_fan_out": True,
    "task_type": "CAUSAL_LM", "seed": 1,
}  # fmt: skip


def samples(seed: int = 0, n: int = 8) -> Dataset:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(3, 60, 12).astype(np.int32) for _ in range(n)]
    return Dataset([Sample(i, np.ones(len(i), np.float32)) for i in ids])


@pytest.fixture
def trainer(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Trainer]:
    def make(train: dict[str, Any] | None = None, lora: dict[str, Any] | None = None, **parts: Any) -> Trainer:
        model = lc.load_model(parts.get("model", tiny_model_dir), progress=False, quantize=parts.get("quantize"),
                              **parts.get("load", {}))  # fmt: skip
        model.add_adapter(lc.LoraConfig(**LORA | (lora or {})))
        config = lc.TrainConfig(**{"output_dir": str(tmp_path / "out")} | TRAIN | (train or {}))
        return Trainer(model, parts.get("data", samples()), config, parts.get("eval_data"))

    return make


@pytest.fixture
def start(trainer: Callable[..., Trainer], tmp_path: Path) -> Path:
    """The checkpoint in the middle of a run."""
    trainer().train()
    return tmp_path / "out/checkpoint-2"


def arrays(trainer: Trainer) -> list[np.ndarray[Any, Any]]:
    return [np.array(p.data) for p in trainer.parameters]


def rows() -> Iterator[tuple[str, str, str]]:
    """(class, field, rule) of the table in the documentation."""
    kind = ""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"\| (\w*) ?\| (.+?) \| (.+?) \|", line)
        if match and match[3] != "resumed with another value":
            kind = match[1] or kind
            yield kind, match[2].strip("`"), match[3]


FIELDS = [row for row in rows() if row[0] in ("TrainConfig", "LoraConfig")]


def test_every_field_is_placed() -> None:
    for cls, other in ((lc.TrainConfig, OTHER_TRAIN), (lc.LoraConfig, OTHER_LORA)):
        placed = [field for kind, field, _ in FIELDS if kind == cls.__name__]
        assert placed == list(cls.model_fields), cls
        assert set(other) == set(cls.model_fields), cls
    kinds = {kind.__name__ for kind in ADAPTER_KINDS.values()}
    assert {kind for kind, _, _ in rows()} == {"TrainConfig", *kinds, "data", "model"}


def test_an_option_that_a_checkpoint_does_not_name_had_its_default(trainer: Callable[..., Trainer], start: Path) -> None:
    file = start / "trainer_state.json"
    state = json.loads(file.read_text())
    for options in (state["config"], state["run"]["options"]):
        del options["lr_scheduler_kwargs"]
    file.write_text(json.dumps(state))
    shutil.rmtree(start.parent / "checkpoint-4")
    assert trainer().train(resume=True).steps == 4
    with pytest.raises(CheckpointError, match=r"lr_scheduler_kwargs \{\} -> \{'num_cycles': 1.5\}"):
        trainer({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 1.5}}).train(resume=str(start))


@pytest.mark.parametrize(("kind", "field", "rule"), FIELDS, ids=[f"{k}.{f}" for k, f, _ in FIELDS])
def test_a_field_changed_once_is_refused_or_allowed_as_the_table_says(
    trainer: Callable[..., Trainer], start: Path, tmp_path: Path, kind: str, field: str, rule: str
) -> None:
    other = (OTHER_TRAIN if kind == "TrainConfig" else OTHER_LORA)[field]
    if field == "output_dir":
        other = str(tmp_path / other)
    changed = {field: other} | ({"max_steps": -1} if field == "num_train_epochs" else {})
    train, lora = (changed, {}) if kind == "TrainConfig" else ({}, changed)
    parts: dict[str, Any] = {}
    if field == "lr_scheduler_kwargs":  # which a schedule has that has options
        train = train | {"lr_scheduler_type": "cosine"}
        shutil.rmtree(start.parent)
        trainer({"lr_scheduler_type": "cosine"}).train()
    elif field == "optim_args":  # which an optimizer has that has options
        train = train | {"optim": "sgd"}
        shutil.rmtree(start.parent)
        trainer({"optim": "sgd"}).train()
    elif field == "memory_limit":  # which needs recompute auto beside it
        train = train | {"recompute": "auto"}
    elif field == "method":  # which needs an NF4 base
        parts["quantize"] = "nf4"
    elif field == "val_fraction":
        parts["data"], parts["eval_data"] = samples().split(other, 0)
    elif field.startswith("eval_") or field == "load_best_model_at_end":
        parts["eval_data"] = samples(5)
        train = train | ({"eval_steps": 1, "learning_rate": 1e-2} if field == "load_best_model_at_end" else {})
    elif field in ("metric_for_best_model", "greater_is_better", "early_stopping_patience", "early_stopping_threshold"):
        parts["eval_data"] = samples(5)  # which need an evaluation to judge by
        train = {"eval_steps": 1, "early_stopping_patience": 9} | train
    elif field == "paged_dir":
        train = train | {"optim": "paged_adamw_32bit"}  # whose state is that of adamw_torch
    elif field == "report_to":
        pytest.importorskip("tensorboard")
    elif field == "max_skipped_steps":
        train = train | {"nonfinite_steps": "skip"}
    elif field in ("quant_type", "double_quant", "block_size"):  # of a base that is quantized while it is loaded
        parts = {"quantize": other} if field == "quant_type" else {"quantize": "nf4", "load": {field: other}}
        train = train | {"method": "qlora"}
        shutil.rmtree(start.parent)
        trainer({"method": "qlora"}, quantize="nf4").train()
    whole = None
    if rule.startswith("allowed"):
        plain = trainer({"output_dir": str(tmp_path / "whole")})
        plain.train()
        whole = arrays(plain)
    resumed = trainer(train, lora, **parts)
    if rule.startswith("refused"):
        name = field if kind == "TrainConfig" else f"LoraConfig.{field}"
        with pytest.raises(CheckpointError, match=rf"(: |, ){re.escape(name)} .* -> "):
            resumed.train(resume=start)
    elif rule.startswith("length"):
        with pytest.warns(LoraCWarning, match="the run had 4 steps and has"):
            resumed.train(resume=start)
    else:
        resumed.train(resume=start)
        assert whole is not None
        assert all(np.array_equal(a, b) for a, b in zip(arrays(resumed), whole, strict=True))


def test_data_and_base_are_known_by_digest(
    trainer: Callable[..., Trainer], start: Path, make_model: Callable[..., Path], tiny: Any, tmp_path: Path
) -> None:
    mask = samples()
    mask.samples[3].loss_mask[5] = 0
    other = tiny.write(tmp_path / "other", tiny.config, tiny.tensors(tiny.config, np.float32, 1))
    for name, parts in (
        ("data", {"data": samples(1)}), ("data", {"data": samples(0, 7)}), ("data", {"data": mask}),
        ("model", {"model": other}), ("model", {"model": make_model("theta", rope_theta=500.0)}),
        ("model", {"quantize": "nf4"}),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=rf"{name} \(digest\) \w{{8}} -> \w{{8}}\b"):
            trainer(**parts).train(resume=start)
        with pytest.warns(LoraCWarning, match=rf"resumed with changes: {name} \(digest\)"):
            trainer(**parts, train={"output_dir": str(tmp_path / name)}).train(resume=start, allow_changes=True)
    again = trainer(model=make_model("copy"), eval_data=samples(5))
    assert again.train(resume=start).steps == 4


def test_changes_are_allowed_when_asked_for(trainer: Callable[..., Trainer], start: Path) -> None:
    changed = trainer({"learning_rate": 1e-3, "seed": 3})
    with pytest.raises(CheckpointError, match=r"learning_rate 0.01 -> 0.001, seed 0 -> 3; .*--allow-changes"):
        changed.train(resume=start)
    with pytest.warns(LoraCWarning, match="learning_rate 0.01 -> 0.001, seed 0 -> 3"):
        result = changed.train(resume=start, allow_changes=True)
    assert [r["step"] for r in result.history if "loss" in r] == [1, 2, 3, 4]
    with pytest.raises(CheckpointError, match="LoraConfig.r 2 -> 4"):
        trainer(lora={"r": 4}).train(resume=start)
    with pytest.warns(LoraCWarning), pytest.raises(CheckpointError, match="expected .* with|expected .* as F32"):
        trainer(lora={"r": 4}).train(resume=start, allow_changes=True)


def test_nothing_to_resume_from_is_an_error_and_auto_starts(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    (tmp_path / "out/checkpoint-9").mkdir(parents=True)  # not of a run
    with pytest.raises(CheckpointError, match="expected a checkpoint to resume from, got none.*--resume auto"):
        trainer().train(resume=True)
    with pytest.raises(CheckpointError, match="nowhere: resume: expected a checkpoint folder"):
        trainer().train(resume=tmp_path / "nowhere")
    assert trainer().train(resume="auto").history[0]["step"] == 1
    shutil.rmtree(tmp_path / "out/checkpoint-4")
    result = trainer().train(resume="auto")
    assert [r["step"] for r in result.history] == [1, 2, 3, 4]
    done = trainer().train(resume="auto")
    assert done.steps == 4 and not done.interrupted and done.history == result.history


def test_a_finished_run_is_prolonged_as_if_it_had_been_longer(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    schedule = {"lr_scheduler_type": "constant"}
    whole = trainer(schedule | {"output_dir": str(tmp_path / "whole"), "max_steps": 7})
    whole.train()
    trainer(schedule | {"save_steps": 0}).train()
    longer = trainer(schedule | {"max_steps": 7})
    with pytest.warns(LoraCWarning, match="the run had 4 steps and has 7 now; from step 4"):
        longer.train(resume=True)
    assert all(np.array_equal(a, b) for a, b in zip(arrays(longer), arrays(whole), strict=True))
    with pytest.raises(CheckpointError, match="expected a run of 7 steps or more.* got 3; give a larger --max-steps"):
        trainer(schedule | {"max_steps": 3}).train(resume=True, allow_changes=True)


def test_the_checkpoint_that_was_written_last_is_taken(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer({"max_steps": 20, "save_steps": 0}).train()
    with pytest.raises(ConfigError, match=r"output_dir: expected a folder without a run, got .*checkpoint-20 of another one"):
        trainer({"max_steps": 4, "seed": 1}).train()
    trainer({"max_steps": 4, "seed": 1}).train(overwrite=True)
    with pytest.raises(CheckpointError, match="checkpoint-4: .*seed 1 -> 0"):
        trainer({"max_steps": 20}).train(resume=True)
    assert (tmp_path / "out/checkpoint-20").exists()


def test_only_checkpoints_of_this_run_are_pruned_and_of_these_only_its_files(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    mine = ["checkpoint-2024", "checkpoint-best-1", "checkpoint-02", "checkpoint-1/deep"]
    for name in mine:
        (out / name).mkdir(parents=True)
        (out / name / "notes.txt").write_text("mine")
    trainer({"max_steps": 3, "save_steps": 0}).train()  # another run's, in the same folder
    trainer({"max_steps": 8, "save_steps": 1, "save_total_limit": 2, "seed": 1}).train(overwrite=True)
    assert all((out / name / "notes.txt").read_text() == "mine" for name in mine)
    assert sorted(p.name for p in out.iterdir() if (p / "trainer_state.json").exists()) == [
        "checkpoint-7", "checkpoint-8",
    ]  # fmt: skip
    assert sorted(p.name for p in (out / "checkpoint-1").iterdir()) == ["deep"]
    with pytest.warns(LoraCWarning, match="the run had 8 steps"):
        trainer({"max_steps": 10, "save_steps": 1, "save_total_limit": 1, "seed": 1}).train(resume=True)
    left = sorted(p.name for p in out.iterdir() if (p / "trainer_state.json").exists())
    assert left == ["checkpoint-10", "checkpoint-9"]  # the state before the last one stays beside it


@pytest.mark.parametrize("damage", [
    {"step": None}, {"step": -1}, {"step": 1.5}, {"step": True}, {"step": 1 << 70}, {"step": 1}, {"history": None},
    {"history": {"a": 1}}, {"history": [1]}, {"history": [{"loss": 1.0}]}, {"history": [{"step": 1, "loss": "x"}]},
    {"history": [{"step": 1, "tokens": 0.5}]}, {"history": [{"step": 99}]}, {"history": [{"step": 1, "loss": float("nan")}]},
    {"format": 3}, {"format": "2"}, {"run": None}, {"run": {}}, {"run": {"options": {}, "total_steps": 4, "data": 1}},
    {"run_id": 7}, {"run_id": "other"}, {"checkpoints": "x"}, {"checkpoints": [None]}, {"saved_at": None},
], ids=str)  # fmt: skip
def test_a_damaged_position_is_one_clear_error(trainer: Callable[..., Trainer], start: Path, damage: dict[str, Any]) -> None:
    file = start / "trainer_state.json"
    values = {k: v for k, v in (json.loads(file.read_text()) | damage).items() if v is not None}
    file.write_text(json.dumps(values))
    resumed = trainer()
    before = arrays(resumed)
    with pytest.raises(CheckpointError, match="expected"):
        resumed.train(resume=start)
    assert all(np.array_equal(a, b) for a, b in zip(before, arrays(resumed), strict=True)) and resumed.history == []


TENSOR_DAMAGE = ["float64", "int32", "missing", "more", "shape", "nan", "negative", "cut", "empty", "absent"]


@pytest.mark.parametrize("damage", TENSOR_DAMAGE)
def test_damaged_tensors_are_one_clear_error(trainer: Callable[..., Trainer], start: Path, damage: str) -> None:
    from safetensors.numpy import load_file, save_file

    from lora_c.checkpoints.safetensors_file import SafetensorsFile

    file = start / "training_state.safetensors"
    metadata, tensors = SafetensorsFile(file).metadata, load_file(file)
    key = sorted(name for name in tensors if name.startswith("v."))[-1]
    match damage:
        case "float64" | "int32":
            tensors = {name: array.astype(damage) for name, array in tensors.items()}
        case "missing":
            del tensors[key]
        case "more":
            tensors["m.other"] = tensors[key]
        case "shape":
            tensors[key] = tensors[key].reshape(-1)
        case "nan" | "negative":
            tensors[key] = np.full_like(tensors[key], -1.0 if damage == "negative" else np.nan)
    save_file(tensors, file, metadata)
    if damage in ("cut", "empty"):
        file.write_bytes(file.read_bytes()[: -5 if damage == "cut" else 0])
    if damage == "absent":
        file.unlink()
    resumed = trainer()
    before = arrays(resumed)
    with pytest.raises(CheckpointError, match="expected"):
        resumed.train(resume=start)
    assert all(np.array_equal(a, b) for a, b in zip(before, arrays(resumed), strict=True))


def test_a_checkpoint_of_the_older_format_is_resumed_only_when_asked_for(trainer: Callable[..., Trainer], start: Path) -> None:
    values = json.loads((start / "trainer_state.json").read_text())
    (start / "trainer_state.json").write_text(json.dumps({key: values[key] for key in ("step", "history", "config")}))
    with pytest.raises(CheckpointError, match="got one of an older format.*--allow-changes"):
        trainer().train(resume=start)
    resumed = trainer()
    assert resumed.train(resume=start, allow_changes=True).steps == 4
    assert [r["step"] for r in resumed.history] == [1, 2, 3, 4]


@pytest.mark.parametrize("where", ["loss", "gradient", "held-out loss", "parameters"])
def test_a_run_that_diverges_saves_and_names_the_last_finite_state(
    trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run = trainer({"save_steps": 0, "eval_steps": 3}, eval_data=samples(3, 2))
    real, steps = Trainer._forward_backward, []

    def forward_backward(self: Trainer, batch: Any, grad_scale: float, dropout_step: int) -> float:
        loss = real(self, batch, 3e38 if dropout_step == 3 and where == "gradient" else grad_scale, dropout_step)
        steps.append(dropout_step)
        return float("nan") if dropout_step == 3 and where == "loss" else loss

    def measure(self: Trainer, dataset: Any = None) -> dict[str, float]:
        if steps == [0, 1, 2, 3] and where == "parameters":
            write_values(self.parameters[0], np.nan, where=0)
        return {"loss": float("inf") if steps == [0, 1, 2] and where == "held-out loss" else 1.0}

    monkeypatch.setattr(Trainer, "_forward_backward", forward_backward)
    monkeypatch.setattr(Trainer, "measure", measure)
    last = tmp_path / "out/checkpoint-3"
    if where == "parameters":
        with pytest.raises(DivergenceError, match="expected finite parameters after step 4, got NaN.*no finite state"):
            run.train()
        return
    with pytest.raises(DivergenceError, match=f"{where}s? (at|after) step [34], got .*; the last finite state is in {last}; "):
        run.train()
    monkeypatch.undo()
    again = trainer({"eval_steps": 0})
    assert again.train(resume=last).steps == 4


def test_values_go_from_the_file_into_the_parameters(
    trainer: Callable[..., Trainer], start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No copy of them is made in between."""
    from lora_c.weights.parameter_values import set_values

    views: list[bool] = []

    def set_and_note(parameter: lc.Parameter, array: np.ndarray[Any, Any]) -> None:
        views.append(not array.flags.owndata)
        set_values(parameter, array)

    monkeypatch.setattr("lora_c.training.state.set_values", set_and_note)
    run = trainer()
    run.resume_from(start)
    assert len(views) == len(run.parameters) and all(views)


@pytest.mark.parametrize("what", ["parameters", "moments"])
def test_no_checkpoint_holds_numbers_that_are_not_finite(
    trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    run = trainer({"save_steps": 1, "save_total_limit": 1, "max_steps": 9})
    real = Trainer._one_step

    def one_step(self: Trainer, step: int, *rest: Any) -> None:
        real(self, step, *rest)
        if step == 2 and what == "parameters":
            write_values(self.parameters[0], np.inf, where=0)
        elif step == 2:
            state = self.optimizer.state_dict()
            state["v"][0][:] = np.inf
            monkeypatch.setattr("lora_c.training.state._state_entries", lambda _: [TensorEntry.of("v", state["v"][0])])

    monkeypatch.setattr(Trainer, "_one_step", one_step)
    last = tmp_path / "out/checkpoint-2"
    with pytest.raises(
        DivergenceError, match=f"expected finite {what} after step 3, got .*; the last finite state is in {last};"
    ):
        run.train()
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    assert trainer({"max_steps": 9}).train(resume=last).steps == 9


def test_the_base_that_an_adapter_made_is_part_of_the_digest(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    pissa = {"init_lora_weights": "pissa"}
    trainer(lora=pissa).train()
    assert trainer(lora=pissa).train(resume=tmp_path / "out/checkpoint-2").steps == 4
    other = trainer(lora=pissa)
    assert other.model.adapter is not None
    name, weight = next(iter(other.model.adapter.base.items()))
    other.model.adapter.base[name] = np.array(weight) + 1
    with pytest.raises(CheckpointError, match=r"model \(digest\)"):
        other.train(resume=tmp_path / "out/checkpoint-2")


def test_a_second_call_after_the_last_step_is_refused_and_changes_nothing(trainer: Callable[..., Trainer]) -> None:
    run = trainer()
    run.train()
    before = arrays(run)
    with pytest.raises(ConfigError, match="train: expected a run with steps left, got one that has done all 4; make another"):
        run.train()
    assert [r["step"] for r in run.history] == [1, 2, 3, 4]
    assert run.train(resume=True).steps == 4
    assert all(np.array_equal(a, b) for a, b in zip(arrays(run), before, strict=True))


def test_a_checkpoint_of_transformers_is_named(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    folder = tmp_path / "out/checkpoint-500"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 500, "epoch": 1.0, "log_history": []}))
    with pytest.raises(CheckpointError, match=r"checkpoint-500: expected a checkpoint of lora-c, got one of transformers"):
        trainer().train(resume="auto")


def test_what_is_resumed_elsewhere_counts_its_own_checkpoints(
    trainer: Callable[..., Trainer], start: Path, tmp_path: Path
) -> None:
    run = trainer({"output_dir": str(tmp_path / "new")})
    run.train(resume=start)
    assert run.checkpoints == [4] and (tmp_path / "new/checkpoint-4").is_dir() and start.is_dir()
