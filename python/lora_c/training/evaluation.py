"""The loss on held-out data: of a model, and of a run after some of its steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .._core import Parameter, PassStopped
from ..comm.communicator import Communicator
from ..data.batching import PackedBatch
from ..data.fits import fit_to_model
from ..errors import ConfigError, DivergenceError
from ..families.labels import SCORE
from ..runs.history import was_evaluated
from .label_measures import label_measures
from .shared_batches import each_batch

if TYPE_CHECKING:
    from ..data import Dataset
    from ..display.progress import Progress
    from ..model.model import Model
    from .trainer import Trainer


def check_score(model: Model, parameters: Iterable[Parameter]) -> None:
    """Refuse to train a classifier whose score was drawn and is not trained: what comes of it would be of no use.

    Raises
    ------
    ConfigError
        With the way out.
    """
    if "lm_head" in model.base.weights.drawn and not any(parameter.name.endswith(SCORE) for parameter in parameters):
        raise ConfigError(
            "model: expected a classifier whose score is trained or was loaded, got one with a new score, which this adapter "
            "does not train; put a LoRA adapter beside it (set_adapter([...]), --peft-type LORA,PROMPT_TUNING)"
        )


def evaluate_loss(model: Model, dataset: Dataset, *, max_tokens: int = 2048) -> float:
    """Return the mean loss over every token with loss, of a classifier over every text; what is beyond the context is cut.

    Parameters
    ----------
    model : Model
        With the adapter that is in use, or bare.
    dataset : Dataset
        Some of its tokens carry loss.
    max_tokens : int
        Of a batch.

    Returns
    -------
    float
        In nats per token.
    """
    return evaluate_measures(model, dataset, max_tokens=max_tokens)["loss"]


def evaluate_measures(
    model: Model, dataset: Dataset, *, max_tokens: int = 2048, comm: Communicator | None = None
) -> dict[str, float]:
    """Return what is measured on held-out data, by name: the loss, and of a classifier how well its answers agree.

    Parameters
    ----------
    model, dataset, max_tokens
        As for `evaluate_loss`.
    comm : Communicator, optional
        Its ranks divide the batches; every one of them calls this and gets the same numbers.
    """
    if max_tokens < 1:
        raise ConfigError(f"max_tokens: expected 1 token or more in a batch, got {max_tokens}")
    dataset = fit_to_model(dataset, model, "dataset")
    if model.labels is not None:
        return label_measures(model, dataset, max_tokens, comm)

    def measured(batch: PackedBatch) -> tuple[float, float]:
        arrays = batch.input_ids, batch.cu_seqlens, batch.targets, batch.loss_weight
        return model.decoder.loss(*arrays), batch.total_weight

    loss = weight = 0.0
    for of_batch, weight_of_batch in each_batch(dataset, max_tokens, measured, comm):
        loss += of_batch
        weight += weight_of_batch
    return {"loss": loss / weight}


def measure(trainer: Trainer, dataset: Dataset | None = None) -> dict[str, float]:
    """Return what is measured on held-out data, by name: `loss`, and of a classifier accuracy, F1 and the like.

    Parameters
    ----------
    dataset : Dataset, optional
        By default the trainer's `eval_data`.
    """
    dataset = dataset if dataset is not None else trainer.eval_data
    if dataset is None:
        raise ConfigError("eval_data: expected a dataset, got none; give eval_data or val_fraction")
    with trainer.settings():
        return evaluate_measures(trainer.model, dataset, max_tokens=trainer.config.eval_batch_tokens)


def measure_together(trainer: Trainer) -> dict[str, float]:
    """What `measure` returns, by all ranks of a run."""
    if trainer.comm.size == 1 or trainer.eval_data is None:
        return trainer.measure()
    with trainer.settings():
        return evaluate_measures(
            trainer.model, trainer.eval_data, max_tokens=trainer.config.eval_batch_tokens, comm=trainer.comm
        )


def evaluate_and_log(trainer: Trainer, done: int, progress: Progress) -> None:
    """Once after each step where it is asked for; a stop in the middle of it leaves no record."""
    if trainer.eval_data is None or was_evaluated(trainer.history, done):
        return
    try:
        with trainer.leaving.during("evaluation"):
            found = measure_together(trainer)
    except PassStopped:
        return
    if not math.isfinite(found["loss"]):
        raise DivergenceError(f"expected a finite held-out loss after step {done}, got {found['loss']}")
    record = {"step": done} | {f"eval_{name}": value for name, value in found.items()}
    trainer.history.append(record)
    trainer.metrics.append(record)
    progress.evaluation(record)
    trainer.callbacks.report(trainer, "on_evaluate", done)


def evaluate_if_due(trainer: Trainer, done: int, progress: Progress) -> None:
    """Evaluate every `eval_steps` steps."""
    every = trainer.config.eval_steps
    if every and done % every == 0:
        evaluate_and_log(trainer, done, progress)
