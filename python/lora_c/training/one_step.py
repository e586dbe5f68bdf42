"""One optimizer step of a run: gradients, the update, and what is kept of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..data.batching import step_groups
from ..errors import DivergenceError
from .skipped_steps import Unfit, skip_or_end
from .step_record import step_record
from .update import update

if TYPE_CHECKING:
    from ..display.progress import Progress
    from .trainer import Trainer


def one_step(trainer: Trainer, step: int, progress: Progress) -> None:
    """Take a step, counted from 0, or leave it out where its numbers are not fit for one.

    Raises
    ------
    DivergenceError
        They are not, and the run has to end.
    """
    config = trainer.config
    size, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    epoch, groups = step_groups(len(trainer.train_data), step, size, accumulation, config.seed)
    loss, weight, tokens = trainer.share.gradients(trainer, groups, step)
    rate, norm, problem = _updated(trainer, step, loss)
    trainer.tokens_seen += tokens
    if problem is not None:
        skip_or_end(trainer, step, groups, loss, problem, progress)
    record = step_record(trainer, step, epoch, loss / weight, rate, norm)
    if problem is not None:
        record = {name: value for name, value in record.items() if math.isfinite(value)} | {"skipped": 1}
        record.pop("loss", None)
    progress.step(record)
    trainer.history.append(record)
    if (step + 1) % config.logging_steps == 0 or step + 1 == trainer.total_steps or problem is not None:
        trainer.metrics.append(record)


def _updated(trainer: Trainer, step: int, loss: float) -> tuple[float, float, Unfit | None]:
    """The learning rate, the norm of the gradients, and why the parameters were not changed, if they were not."""
    if not math.isfinite(loss):
        return math.nan, math.nan, Unfit(f"expected a finite loss at step {step + 1}, got {loss}", is_finite=False)
    try:
        rate, norm = update(trainer, step)
    except DivergenceError as error:
        return math.nan, math.nan, Unfit(str(error), is_finite=False)
    most = trainer.config.skip_grad_norm
    if most and norm > most:
        text = f"expected a gradient norm of at most {most:g} at step {step + 1}, got {norm:.6g}"
        return math.nan, norm, Unfit(text, is_finite=True)
    return rate, norm, None
