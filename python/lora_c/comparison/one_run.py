"""What one process does: train a row with one seed and measure it, or measure the base as it is."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core import get_num_threads
from ..data import Dataset, Sample
from ..errors import DivergenceError
from ..files.atomic import write_json
from ..files.json_files import read_json_object
from ..runs.checkpoints import checkpoint_folders
from ..training.evaluation import evaluate_loss, evaluate_measures
from ..training.trials import train_to
from .costs import latency_of, peak_rss_bytes, steps_per_second, swap_seconds, token_seconds

if TYPE_CHECKING:
    from ..model.model import Model
    from ..training.trainer import Trainer

ADAPTER = "adapter"  # folder of what a run leaves, in the run's
_PEAK_FILE = "peak.json"
_BASE_TEXT_TOKENS = 32_768


@dataclass(frozen=True)
class Yardsticks:
    """What every row is measured by besides its held-out data.

    Attributes
    ----------
    base_text : Dataset or None
        What the base knew before.
    score : callable or None
        The scores of a task by name.
    with_latency : bool
        Whether tokens are timed; one seed is enough.
    """

    base_text: Dataset | None = None
    score: Callable[[Model], dict[str, float]] | None = None
    with_latency: bool = True


def measure_base(model: Model, eval_data: Dataset, by: Yardsticks, batch_tokens: int) -> dict[str, Any]:
    """What the base is worth before anything is trained, and what it costs."""
    results = {"parameters": model.num_parameters()} | _held_out(evaluate_measures(model, eval_data, max_tokens=batch_tokens))
    results |= _others(model, by, batch_tokens)
    costs: dict[str, Any] = {"peak_rss_bytes": peak_rss_bytes(), "threads": get_num_threads()}
    if by.with_latency and model.labels is None:
        costs["token_seconds"] = {"base": token_seconds({"base": (model, False)})["base"]}
    return {"results": results, "costs": costs}


def measure_row(trainer: Trainer, folder: Path, by: Yardsticks) -> dict[str, Any]:
    """Train a row to its end, from where it was stopped, and return what it has brought and what it cost.

    "results" are the same however often the run was stopped; "costs" are this machine's.
    """
    model, total = trainer.model, trainer.total_steps
    results: dict[str, Any] = {"trained_parameters": sum(parameter.size for parameter in trainer.parameters), "steps": total}
    try:
        done = train_to(trainer, folder, total)
        peak = _peak_of_training(folder, trained=done < total)
        results |= _losses(trainer)
    except DivergenceError as error:
        return {"results": results | {"diverged": str(error).partition(";")[0]}, "costs": {}}
    batch_tokens = trainer.config.eval_batch_tokens
    with trainer.settings():
        results |= _others(model, by, batch_tokens)
    saved = _save(model, folder / ADAPTER)
    results["checkpoint_bytes"] = saved
    costs: dict[str, Any] = {"peak_rss_bytes": peak, "threads": get_num_threads()}
    costs["accounted_peak_bytes"] = max((record.get("peak_memory_bytes", 0) for record in trainer.history), default=0)
    rates = steps_per_second(trainer.history)
    if rates is not None:
        costs |= {"step_seconds": 1 / rates[0], "tokens_per_second": rates[1]}
    if by.with_latency and model.labels is None:
        model.free_activations()
        costs["token_seconds"] = latency_of(model)
        costs["swap_seconds"] = swap_seconds(model, folder / ADAPTER)
    return {"results": results, "costs": costs}


def _peak_of_training(folder: Path, trained: bool) -> int | None:
    """The memory of this process, kept for one that finds the run trained; None where nobody kept it."""
    path = folder / _PEAK_FILE
    if trained:
        write_json(path, {"peak_rss_bytes": peak_rss_bytes()})
    return read_json_object(path).get("peak_rss_bytes") if path.exists() else None


def _losses(trainer: Trainer) -> dict[str, Any]:
    """Held-out loss, the loss of as much of what was trained on, and both over the steps."""
    assert trainer.eval_data is not None
    count = min(len(trainer.eval_data), len(trainer.train_data))
    seen = Dataset(trainer.train_data.samples[:count], n_examples=count)
    found, trained_on = _held_out(trainer.measure()), trainer.evaluate(seen)
    held_out = found["eval_loss"]
    if not (math.isfinite(held_out) and math.isfinite(trained_on)):
        raise DivergenceError(f"expected a finite loss, got {held_out} held out and {trained_on} on training data")
    return {**found, "train_loss": trained_on, "gap": held_out - trained_on, "curve": _curve(trainer.history)}


def _held_out(measures: dict[str, float]) -> dict[str, Any]:
    """The loss, and of a classifier its scores."""
    scores = {name: value for name, value in measures.items() if name != "loss"}
    return {"eval_loss": measures["loss"]} | ({"scores": scores} if scores else {})


def _curve(history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """At each evaluation the held-out loss and the mean training loss of the steps since the one before."""
    found: list[dict[str, float]] = []
    since: list[float] = []
    for record in history:
        if "loss" in record:
            since.append(record["loss"])
        elif "eval_loss" in record:
            mean = {"train_loss": sum(since) / len(since)} if since else {}
            found.append({"step": record["step"], "eval_loss": record["eval_loss"], **mean})
            since = []
    return found


def _others(model: Model, by: Yardsticks, batch_tokens: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if by.base_text is not None:
        values["base_text_loss"] = evaluate_loss(model, by.base_text, max_tokens=batch_tokens)
    if by.score is not None:
        values["scores"] = by.score(model)
    return values


def _save(model: Model, folder: Path) -> int:
    """Bytes of what is saved of the run; a whole model is not kept, an adapter is."""
    if model.adapter_config is None:
        model.save(folder)
    else:
        model.save_adapter(folder)
    written = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    if model.adapter_config is None:
        shutil.rmtree(folder)
    return written


def remove_checkpoints(folder: Path) -> None:
    """Remove what a run that is done needs no more."""
    for checkpoint in checkpoint_folders(folder):
        shutil.rmtree(checkpoint)


def first_tokens(data: Dataset, most: int = _BASE_TEXT_TOKENS) -> Dataset:
    """The first samples of a text, up to so many tokens, one at least."""
    kept: list[Sample] = []
    count = 0
    for sample in data.samples:
        if kept and count + len(sample.input_ids) > most:
            break
        kept.append(sample)
        count += len(sample.input_ids)
    return Dataset(kept, n_examples=len(kept))
