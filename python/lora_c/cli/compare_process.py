"""One job of `lora-c compare`: python -m lora_c.cli.compare_process FOLDER, which holds job.json and gets the result.

The job of the base says what all rows share, and measures the base; that of a row trains it with one seed; that of loading
times how a base comes into memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..comparison.compare import SHARED
from ..comparison.processes import JOB, RESULT, end_with_parent
from ..comparison.rows import Row
from ..configs import LoraConfig, TrainConfig
from ..errors import AdapterError, ConfigError, LoraCError
from ..files.atomic import write_json
from ..files.json_files import read_json_object
from ..runs.lock import run_lock
from .addresses import keep_addresses
from .early_forecast import read_and_forecast
from .trials import Trials

if TYPE_CHECKING:
    from ..comparison.one_run import Yardsticks
    from ..data import Dataset
    from ..model.model import Model

_PATIENCE = 20.0  # seconds
_OF_A_RUN = ("seed", "output_dir")
QUESTIONS = ("test", "validation", "train")  # the split of a folder that is asked
_SEEN = 8  # evaluations over a run, where nobody says how many


def main(folder: Path) -> None:
    """Do the job of a folder, when the one before it that was ended is gone."""
    end_with_parent()
    keep_addresses()
    with run_lock(folder, patience=_PATIENCE):
        _work(folder)


def _work(folder: Path) -> None:
    """Do the job; what is refused is a result."""
    from ..comparison.one_run import remove_checkpoints

    job = read_json_object(folder / JOB)
    kind = str(job["kind"])
    try:
        done = _JOBS[kind](job, folder)
    except ValueError as error:  # of the package, and of the extension, whose refusals are plain ones
        if kind == "base" and isinstance(error, LoraCError):
            write_json(folder / SHARED, {"refused": str(error), "error": type(error).__name__})
            return
        if kind != "row" or not (isinstance(error, (AdapterError, ConfigError)) or type(error) is ValueError):
            raise
        done = {"refused": str(error)}
    own = {key: job[key] for key in ("row", "seed") if key in job}
    if done is not None:
        write_json(folder / RESULT, {**own, **done})
    if kind == "row":
        remove_checkpoints(folder)


def _base(job: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """Say what the rows share, and measure the base where that was not done."""
    from ..comparison.one_run import measure_base
    from ..runs.digests import data_digest, model_digest

    config = TrainConfig(**job["training"])
    trials = Trials(job["own"], config, task=_task(job, config.seed))
    model = trials.model(TrainConfig(method="lora"), LoraConfig(r=1))
    train_data, eval_data = trials.data(model)
    by = _yardsticks(job, model)
    with model.disable_adapter():
        assert eval_data is not None
        options = {name: v for name, v in config.model_dump(mode="json").items() if name not in _OF_A_RUN}
        shared = options | {f"adapter {name}": value for name, value in job["adapter"].items()} | job["budget"]
        shared |= {"data (digest)": data_digest(train_data), "held-out data (digest)": data_digest(eval_data)}
        shared |= {"model (digest)": model_digest(model), **_shared_task(job), **job["classifier"]}
        shared |= {"text of the base (digest)": None if by.base_text is None else data_digest(by.base_text)}
        write_json(folder / SHARED, shared)
        if (folder / RESULT).exists():
            return None
        return measure_base(model, eval_data, by, config.eval_batch_tokens)


def _task(job: dict[str, Any], seed: int) -> dict[str, Any]:
    """What `load_model` is told: the labels of a classifier, and the seed of its score."""
    found: dict[str, Any] = job["classifier"]
    return found | ({"seed": seed} if found.get("task_type") == "SEQ_CLS" else {})


def _shared_task(job: dict[str, Any]) -> dict[str, Any]:
    """The task, and what its files hold."""
    from hashlib import blake2b

    from ..data import find_files

    if not job["task"]:
        return {"task": None}
    digest = blake2b(digest_size=16)
    for file in find_files(job["task"]["task_data"], QUESTIONS).taken:
        digest.update(Path(file).read_bytes())
    own = {name: value for name, value in job["task"].items() if name != "task_data"}
    return {"task": own, "questions (digest)": digest.hexdigest()}


def _row(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    from ..checkpoints.model_names import find
    from ..comparison.one_run import measure_row
    from ..comparison.settings import adapter_of, run_values
    from ..families.architectures import architecture_of
    from ..model.opening import open_checkpoint
    from ..training.trainer import Trainer

    row, seed = Row(**job["row"]), int(job["seed"])
    config = TrainConfig(**job["training"])
    with open_checkpoint(find(job["own"]["model"], "model")) as checkpoint:
        adapter = adapter_of(row, job["adapter"], seed, architecture_of(checkpoint.config))
    values = run_values(row, job["training"], seed, str(folder))
    split = {"seed": config.seed}  # one for all seeds
    task = _task(job, seed)
    read = read_and_forecast(job["own"], TrainConfig(**values | split), adapter or LoraConfig(), task)
    trials = Trials(job["own"], config, read, task)
    model = trials.model(TrainConfig(**values), adapter or LoraConfig())
    train_data, eval_data = trials.data(model)
    values |= _length(job, values, model, train_data, folder)
    trainer = Trainer(model, train_data, TrainConfig(**values), eval_data)
    by = _yardsticks(job, model)
    done = measure_row(trainer, folder, replace(by, with_latency=seed == job["seeds"][0]))
    ranks = sorted({part.r for part in [adapter] if isinstance(part, LoraConfig)})
    done["results"] |= {"learning_rate": values["learning_rate"], "ranks": ranks}
    return done


def _length(job: dict[str, Any], values: dict[str, Any], model: Model, train_data: Dataset, folder: Path) -> dict[str, Any]:
    """The steps of the budget, and how often is evaluated."""
    from ..comparison.budget import steps_for_seconds, steps_for_tokens
    from ..data.batching import total_steps
    from ..training.trainer import Trainer

    config = TrainConfig(**values)
    steps = total_steps(len(train_data), config)
    if job["budget"].get("tokens"):
        steps = steps_for_tokens(job["budget"]["tokens"], train_data, config)
    elif job["budget"].get("seconds"):
        probe = TrainConfig(**values | {"max_steps": 1, "eval_steps": 0, "val_fraction": 0.0, "warmup_steps": 0})
        steps = steps_for_seconds(job["budget"]["seconds"], Trainer(model, train_data, probe), folder)
    return {"max_steps": steps, "eval_steps": values.get("eval_steps") or max(1, steps // _SEEN)}


def _loading(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    from ..comparison.load_times import measure_loading

    return measure_loading(job["own"]["model"], folder)


def _yardsticks(job: dict[str, Any], model: Model) -> Yardsticks:
    from ..comparison.one_run import Yardsticks, first_tokens
    from ..data import find_files, load_files

    base_text, score = None, None
    if job["base_text"]:
        length = TrainConfig(**job["training"]).max_seq_length
        base_text = first_tokens(load_files(find_files(job["base_text"]), model.tokenizer, max_seq_length=length))
    if job["task"]:
        score = _score(job, model)
    return Yardsticks(base_text, score)


def _score(job: dict[str, Any], model: Model) -> Callable[[Model], dict[str, float]]:
    """What does the task, on questions that are read once."""
    from ..data import find_files
    from ..tasks import run_task
    from .task_evaluation import read_task, task_options_of

    own = {**job["task"], **{key: job["own"].get(key) for key in ("columns", "skip_bad")}}
    options, task = task_options_of(own), str(own["task"])
    given: Any = read_task(own, task, find_files(own["task_data"], QUESTIONS), model, options)

    def score(model: Model) -> dict[str, float]:
        return {name: found.value for name, found in run_task(model, task, given, options).scores.items()}

    return score


_JOBS: dict[str, Callable[[dict[str, Any], Path], dict[str, Any] | None]] = {"base": _base, "row": _row, "loading": _loading}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
