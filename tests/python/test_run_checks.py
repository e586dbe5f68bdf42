"""Options that a run would ignore: each rule of the table refuses in Python and on the command line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from lora_c import LoraConfig, TrainConfig, Trainer, load_model
from lora_c.cli import cli
from lora_c.data import Dataset, Sample
from lora_c.errors import AdapterError, ConfigError
from lora_c.training.run_checks import ADAPTER_OPTIONS, RULES, RunOptions, check_run


def data(n: int = 8) -> Dataset:
    return Dataset([Sample(np.arange(3, 9, dtype=np.int32), np.ones(6, np.float32)) for _ in range(n)])


@pytest.fixture
def trainer_of(tiny_model_dir: Path, make_model: Callable[..., Path], tmp_path: Path) -> Callable[..., Trainer]:
    def make(kind: str = "lora", eval_data: Dataset | None = None, **options: Any) -> Trainer:
        trainable = kind if kind in ("full", "head") else "none"
        quantize: Any = {"qlora": "nf4", "q8_0": "q8_0"}.get(kind)
        folder = tiny_model_dir if kind != "q8_0" else make_model("q8_0", intermediate_size=64)  # blocks of 32 weights
        model = load_model(folder, quantize, trainable=trainable, progress=False)  # type: ignore[arg-type]
        if trainable == "none":
            model.add_adapter(r=2)
        return Trainer(model, data(), TrainConfig(output_dir=str(tmp_path / "out"), **options), eval_data)

    return make


REFUSED_IN_PYTHON = [
    ("lora", {"eval_steps": 2}, "eval_steps: expected held-out data beside it, got none"),
    ("lora", {"eval_batch_tokens": 64}, "eval_batch_tokens: expected held-out data"),
    ("lora", {"load_best_model_at_end": True}, "load_best_model_at_end: expected held-out data"),
    ("lora", {"early_stopping_patience": 2}, "early_stopping_patience: expected held-out data"),
    ("lora", {"metric_for_best_model": "loss"}, "metric_for_best_model: expected load_best_model_at_end or early_stopping"),
    ("lora", {"early_stopping_threshold": 0.1}, "early_stopping_threshold: expected early_stopping_patience beside it"),
    (
        "lora",
        {"optim": "adafactor", "optim_args": {"relative_step": True}, "learning_rate": 1e-3},
        "learning_rate: expected an optimizer without a rate of its own",
    ),
    ("lora", {"optim": "sgd", "adam_beta1": 0.8}, "adam_beta1: expected an optimizer that has them"),
    ("head", {"loraplus_lr_ratio": 4.0}, "loraplus_lr_ratio: expected an adapter of LoRA"),
    ("lora", {"paged_dir": "somewhere"}, "paged_dir: expected optim paged_adamw_32bit or paged_adamw_8bit, or "),
    ("lora", {"optim": "lion", "adam_epsilon": 1e-6}, "adam_epsilon: expected an optimizer that has one"),
    ("lora", {"max_skipped_steps": 3}, "max_skipped_steps: expected nonfinite_steps skip or skip_grad_norm beside it"),
    ("lora", {"method": "qlora"}, "method: expected a model that was made for it.*quantize='nf4' for qlora"),
    ("lora", {"max_steps": 4, "warmup_steps": 5}, "warmup_steps: expected no more than the steps of the run"),
    ("lora", {"num_train_epochs": 1, "warmup_steps": 3}, "warmup_steps: expected no more than the steps of the run"),
    ("lora", {"memory_limit": 10, "recompute": "layer"}, "memory_limit: expected recompute auto"),
    ("lora", {"memory_limit": 1e-6}, "memory_limit: expected at least"),
    ("lora", {"block_size": 128}, "block_size: expected method qlora and a base that is quantized"),
    ("lora", {"method": "lora", "double_quant": False}, "double_quant: expected method qlora"),
    ("qlora", {"method": "qlora", "block_size": 128}, "block_size: expected method qlora"),
    ("qlora", {"method": "qlora", "quant_type": "int4"}, "quant_type: expected method qlora and a base that is quantized so"),
    ("q8_0", {"method": "qlora", "quant_type": "q8_0", "block_size": 32}, "block_size: expected method qlora"),
    ("q8_0", {"method": "qlora", "double_quant": True}, "double_quant: expected method qlora"),
    ("qlora", {"method": "qlora", "double_quant": False}, "double_quant: expected method qlora"),
    ("lora", {"method": "full"}, "method: expected a model that was made for it"),
    ("full", {"method": "lora"}, "method: expected a model that was made for it"),
    ("head", {"method": "full"}, "method: expected a model that was made for it"),
    ("full", {"method": "head"}, "method: expected a model that was made for it"),
]


@pytest.mark.parametrize(("kind", "options", "message"), REFUSED_IN_PYTHON)
def test_ignored_options_are_refused_in_python(trainer_of, kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer_of(kind, **options)


def test_every_rule_has_a_case() -> None:
    in_python = {message.partition(":")[0] for _, _, message in REFUSED_IN_PYTHON}
    for rule in RULES:
        of_the_command_line = set(rule.options) == {"adapter"}  # of which test_run_folder.py has a case
        assert set(rule.options) & in_python or rule.options in (ADAPTER_OPTIONS, ["loftq_config"]) or of_the_command_line


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("lora", {"eval_steps": 0, "val_fraction": 0, "warmup_steps": 0, "memory_limit": None}),
        ("lora", {"max_steps": 4, "warmup_steps": 4}),
        ("lora", {"memory_limit": 10}),
        ("qlora", {"method": "qlora", "quant_type": "nf4", "block_size": 64, "double_quant": True}),
        ("q8_0", {"method": "qlora", "quant_type": "q8_0"}),
        ("full", {"method": "full"}),
        ("head", {"method": "head"}),
        ("head", {}),
    ],
)
def test_options_with_effect_and_those_turned_off_pass(trainer_of, kind: str, options: dict[str, Any]) -> None:
    trainer_of(kind, **options)
    trainer_of(kind, data(2), **options | {"eval_steps": 2, "eval_batch_tokens": 64, "val_fraction": 0.2})


@pytest.mark.parametrize("option", [name for name in LoraConfig.model_fields if name not in ("seed", "task_type")])
@pytest.mark.parametrize("method", ["full", "head"])
def test_options_of_adapters_need_a_method_with_adapters(method: Any, option: str) -> None:
    values = LoraConfig().model_dump() | {"layers_to_transform": [0], "loftq_config": {"loftq_iter": 2}}
    given = {"layers_to_transform": [0]} if option == "layers_pattern" else {}
    lora = LoraConfig(**given, **{option: values[option] if option != "layers_pattern" else "layers"})
    name = "layers_to_transform" if option == "layers_pattern" else option
    with pytest.raises(ConfigError, match=f"{name}: expected method"):
        check_run(RunOptions(TrainConfig(method=method), lora))
    check_run(RunOptions(TrainConfig(method=method), LoraConfig(seed=3)))
    if option != "loftq_config":
        check_run(RunOptions(TrainConfig(method="lora"), lora))


def test_loftq_options_need_loftq() -> None:
    config = {"loftq_iter": 2}
    with pytest.raises(ConfigError, match="loftq_config: expected init_lora_weights loftq"):
        check_run(RunOptions(TrainConfig(), LoraConfig(loftq_config=config)))
    check_run(RunOptions(TrainConfig(), LoraConfig(loftq_config=config, init_lora_weights="loftq")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_pattern": {"q_prjo": 4}}, "rank_pattern: expected patterns of adapted modules, such as .*, got 'q_prjo'"),
        ({"target_modules": ["q_proj"], "alpha_pattern": {"v_proj": 4}}, "alpha_pattern: .*got 'v_proj'"),
        ({"exclude_modules": ["q_proj", "v_prjo"]}, "exclude_modules: expected modules of this model, .*got 'v_prjo'"),
        ({"exclude_modules": r".*\.9\..*"}, "exclude_modules: expected modules of this model"),
        ({"layers_to_transform": [0, 2]}, "layers_to_transform: expected layers from 0 to 1, got 2"),
        ({"layers_to_transform": -1}, "layers_to_transform: expected layers from 0 to 1, got -1|target_modules"),
    ],
)
def test_options_of_a_fresh_adapter_that_match_nothing_are_refused(tiny_model_dir, options: dict, message: str) -> None:
    model = load_model(tiny_model_dir, progress=False)
    with pytest.raises(AdapterError, match=message):
        model.add_adapter(**options)
    ranks = {"v_proj": 2, r".*\.1\.mlp\..*": 3}
    model.add_adapter(exclude_modules=["lm_head", "q_proj"], rank_pattern=ranks, layers_to_transform=1)


class TestCommandLine:
    @pytest.fixture
    def train(self, tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Result]:
        (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": f"w{i} w4"}) + "\n" for i in range(5, 13)))
        (tmp_path / "one.jsonl").write_text('{"text": "w3 w4"}\n')
        count = itertools.count()

        def run(*flags: str, data: str = "d.jsonl") -> Result:
            paths = ["--model", str(tiny_model_dir), "--data", str(tmp_path / data)]
            out = ["--output-dir", str(tmp_path / f"out{next(count)}")]
            return CliRunner().invoke(cli, ["train", *paths, *out, "--max-steps", "2", *flags], standalone_mode=False)

        return run

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--eval-steps", "2"], "--eval-steps: expected held-out data"),
            (["--eval-batch-tokens", "64"], "--eval-batch-tokens: expected held-out data"),
            (["--warmup-steps", "3"], "--warmup-steps: expected no more than the steps"),
            (["--method", "full", "--r", "8"], "--r: expected method lora or qlora"),
            (["--method", "head", "--target-modules", "q_proj"], "--target-modules: expected method lora or qlora"),
            (["--method", "lora", "--block-size", "64"], "--block-size: expected method qlora"),
            (["--method", "full", "--no-double-quant"], "--double-quant: expected method qlora"),
            (["--memory-limit", "4", "--recompute", "none"], "--memory-limit: expected recompute auto"),
            (["--memory-limit", "0.000001"], "--memory-limit: expected at least"),
        ],
    )
    def test_ignored_flags_are_refused(self, train, flags: list[str], message: str) -> None:
        assert message in str(train(*flags).exception)

    def test_a_share_of_one_example_is_refused(self, train) -> None:
        assert "val_fraction: expected at least 2 samples" in str(train("--val-fraction", "0.5", data="one.jsonl").exception)

    def test_a_share_beside_held_out_data_is_refused(self, train, tmp_path: Path) -> None:
        flags = ["--val-fraction", "0.5", "--eval-data", str(tmp_path / "one.jsonl")]
        assert "--val-fraction: expected it unset beside eval_data" in str(train(*flags).exception)

    @pytest.mark.parametrize("method", ["qlora", "lora", "head", "full"])
    def test_the_written_config_starts_the_same_run_again(self, train, tmp_path: Path, method: str) -> None:
        first = train("--method", method)
        assert first.exception is None, first.output
        written = yaml.safe_load((tmp_path / "out0/config.yaml").read_text())
        assert ("r" in written, "block_size" in written) == (method in ("lora", "qlora"), method == "qlora")
        again = CliRunner().invoke(cli, ["train", "--config", str(tmp_path / "out0/config.yaml"), "--output-dir",
                                         str(tmp_path / "again")], standalone_mode=False)  # fmt: skip
        assert again.exception is None, again.output
        losses = [
            [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
            for name in ("out0", "again")
        ]
        assert losses[0] == losses[1]
        once_more = yaml.safe_load((tmp_path / "again/config.yaml").read_text())
        assert once_more == written and written["output_dir"] == "."


@pytest.mark.parametrize(
    ("n", "epochs", "ratio", "expected"),
    [(12, 1.5, 0.1, (5, 1)), (40, 2.5, 0.1, (25, 3)), (100, 1.3, 0.03, (33, 1)), (28, 0.5, 0.1, (4, 1)), (3, 0.1, 0, (1, 0))],
)
def test_steps_of_parts_of_epochs_are_rounded_up(trainer_of, n: int, epochs: float, ratio: float, expected: tuple) -> None:
    """As in transformers: ceil(epochs * ceil(n / batch)) steps, ceil(steps * ratio) of them warm-up."""
    trainer = trainer_of(num_train_epochs=epochs, warmup_ratio=ratio, per_device_train_batch_size=4)
    trainer.train_data = data(n)
    assert (trainer.total_steps, trainer.warmup_steps) == expected
