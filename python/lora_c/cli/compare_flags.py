"""The flags of `lora-c compare`: rows, seeds, budget, what is measured besides; and what --quick stands for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from ..comparison.rows import QUICK, ROWS, Row, chosen_rows
from ..configs import GenerationConfig, TrainConfig
from ..configs.task_names import TASKS, WRITTEN
from ..errors import ConfigError
from .flag_types import FiniteRange, TextList
from .own_rows import own_rows
from .paths import InputPath, InputPaths, flatten

F = TypeVar("F", bound=Callable[..., Any])
_SEEDS = 3
DATA = "compare-data"  # folder of what --quick takes where nobody gives data
# Of --quick: with the model that ships and its task, and with somebody's own.
_QUICK: dict[str, Any] = {
    "max_steps": 200, "per_device_train_batch_size": 16, "learning_rate": 4e-3, "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.05,
}  # fmt: skip
_QUICK_STEPS, _QUICK_SHARE = 60, 0.1
_QUICK_TRAIN, _QUICK_HELD_OUT, _QUICK_STORIES, _QUICK_ANSWER = 1600, 100, 60, 16  # examples, and tokens of an answer


class _Names(TextList):
    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = [value] if isinstance(value, str) and "," not in value else super().convert(value, param, ctx)
        return [found] if isinstance(found, str) else list(found)


def compare_flags(function: F) -> F:
    """Add what the other commands that train have not."""
    options = (
        click.option("--rows", type=_Names(), help=f"What is compared, of {', '.join(ROWS)}.  [default: all]"),
        click.option(
            "--row-file", type=InputPath(), metavar="FILE",
            help="Rows of your own: a YAML file of names, each with options of lora-c train that it changes.",
        ),
        click.option("--seeds", type=click.IntRange(1, 100), help=f"Runs of each row.  [default: {_SEEDS}; with --quick: 1]"),
        click.option(
            "--quick", is_flag=True,
            help=f"{len(QUICK)} rows, one seed, a few steps; without --model and --data the model that ships and its task.",
        ),
        click.option("--budget-tokens", type=click.IntRange(1), help="Train each row for so many tokens."),
        click.option("--budget-seconds", type=FiniteRange(0, min_open=True), help="Train each row for so long."),
        click.option(
            "--base-text", type=InputPaths(), multiple=True, callback=flatten,
            help="Text of the base's own, to see what it still knows of it.",
        ),
        click.option("--task", type=click.Choice(TASKS), metavar="NAME", help=f"Also score: one of {', '.join(TASKS)}."),
        click.option("--task-data", type=InputPath(), help="Questions of the task.  [default: --eval-data]"),
        click.option("--max-new-tokens", type=click.IntRange(1), help="Longest answer of the task.  [default: 256]"),
        click.option("--no-loading", is_flag=True, help="Do not time how the base is loaded and quantized."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def rows_of(own: Mapping[str, Any]) -> dict[str, Row]:
    """The rows that are meant.

    Raises
    ------
    ConfigError
        There is no such row, or one of the user's own is not as it must be.
    """
    mine = own_rows(own["row_file"]) if own.get("row_file") else {}
    named = own["rows"] if own.get("rows") is not None else [*(QUICK if own["quick"] else ROWS), *mine]
    return chosen_rows(named, {**ROWS, **mine})


def seeds_of(own: Mapping[str, Any], first: int) -> list[int]:
    """The seeds of each row, from that of the run on.

    Raises
    ------
    ConfigError
        The last one is beyond what a seed may be.
    """
    count = own.get("seeds") or (1 if own["quick"] else _SEEDS)
    if first + count > 2**63:
        raise ConfigError(f"seed: expected one with {count - 1} seeds above it, the last at most 2**63 - 1, got {first}")
    return list(range(first, first + count))


def take_quick(own: dict[str, Any], given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What --quick stands for where nothing else was given: settings of the runs; inputs go into `own`."""
    if not own["quick"]:
        return given
    length = "num_train_epochs" in given or own.get("budget_tokens") or own.get("budget_seconds")
    steps = {} if length else {"max_steps": _QUICK_STEPS}
    if own.get("model") or own.get("data"):
        return steps | _held_out_share(own, given) | given
    own |= _demonstration(folder) | {name: own[name] for name in ("base_text", "task", "task_data") if own.get(name)}
    return {name: value for name, value in _QUICK.items() if name != "max_steps" or not length} | given


def _held_out_share(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The share of the data that is held out where there is nothing else to compare by."""
    from ..data import find_files

    has_own = own.get("eval_data") or "val_fraction" in given or not own.get("data")
    return {} if has_own or "validation" in find_files(own["data"]).others else {"val_fraction": _QUICK_SHARE}


def _demonstration(folder: Path) -> dict[str, Any]:
    """The model that ships, its task and stories that it knows, as files in the output folder."""
    from ..checkpoints.model_names import BASE_MODEL
    from ..demo.world import stories, task
    from ..files.atomic import write_text
    from ..files.os_errors import make_folder

    place = make_folder(folder / DATA)
    train, held_out = task(0, _QUICK_TRAIN, _QUICK_HELD_OUT)
    for name, examples in (("train", train), ("held_out", held_out)):
        write_text(place / f"{name}.jsonl", "".join(json.dumps(example) + "\n" for example in examples))
    write_text(place / "stories.txt", "\n\n".join(stories(1, _QUICK_STORIES)) + "\n")
    held = str(place / "held_out.jsonl")
    return {
        "model": str(BASE_MODEL), "data": [str(place / "train.jsonl")], "eval_data": [held], "task": "exact-match",
        "task_data": held, "base_text": [str(place / "stories.txt")], "max_new_tokens": _QUICK_ANSWER,
    }  # fmt: skip


def job_of(own: Mapping[str, Any], given: dict[str, Any], adapter: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    """What every process is told.

    Raises
    ------
    ConfigError
        Budgets or options of the task contradict each other, or something can be read only once.
    """
    budget = {"tokens": own.get("budget_tokens"), "seconds": own.get("budget_seconds")}
    lengths = [f"budget_{name}" for name, value in budget.items() if value]
    lengths += [name for name in ("max_steps", "num_train_epochs") if name in given]
    if len(lengths) > 1 and any(budget.values()):
        raise ConfigError(f"{lengths[0]}: expected one budget, got {' and '.join(lengths)}; leave the others out")
    _refuse_standard_input(own)
    inputs = ("model", "data", "eval_data", "limit", "columns", "skip_bad", "chat_template", "device")
    return {
        "own": {name: own.get(name) for name in inputs}, "training": given, "adapter": adapter, "seeds": seeds,
        "budget": budget, "base_text": own.get("base_text"), "task": _task_of(own),
    }  # fmt: skip


def _refuse_standard_input(own: Mapping[str, Any]) -> None:
    for name in ("data", "eval_data", "base_text", "task_data"):
        paths = own.get(name) or []
        if "-" in ([paths] if isinstance(paths, str) else paths):
            raise ConfigError(f"{name}: expected files, which every row reads, got standard input; write it to a file first")


def _task_of(own: Mapping[str, Any]) -> dict[str, Any] | None:
    """The task with its options, as `lora-c eval --task` has them."""
    task, data = own.get("task"), own.get("task_data") or own.get("eval_data")
    for name in ("task_data", "max_new_tokens"):
        if own.get(name) and not task:
            raise ConfigError(f"{name}: expected --task beside it, got none; leave it out")
    if not task:
        return None
    if own.get("max_new_tokens") and task not in WRITTEN:
        raise ConfigError(f"max_new_tokens: expected --task {' or '.join(WRITTEN)} beside it, got {task}; leave it out")
    if not data:
        raise ConfigError("task_data: expected the questions of the task, got none; give --task-data")
    from ..tasks import TaskOptions, check_task

    length = own.get("max_new_tokens") or GenerationConfig().max_new_tokens
    check_task(task, TaskOptions(generation=GenerationConfig(max_new_tokens=length)))
    options = {"limit": None, "max_seq_length": TrainConfig().max_seq_length, "batch_tokens": 2048}
    return {"task": task, "task_data": data, "max_new_tokens": length, "as_json": True, **options}
