"""What is kept of a step: a line of metrics.jsonl."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .memory import peak_memory

if TYPE_CHECKING:
    from .trainer import Trainer


def step_record(trainer: Trainer, step: int, epoch: int, loss: float, rate: float, grad_norm: float) -> dict[str, Any]:
    """Return the record of a step.

    Parameters
    ----------
    trainer : Trainer
        Its counts of tokens include the step.
    step, epoch : int
        Counted from 0; the record counts from 1.
    loss : float
        Per token with loss.
    rate, grad_norm : float
        Of the optimizer's step.
    """
    elapsed = time.perf_counter() - trainer.started
    return {
        "step": step + 1,
        "epoch": round(epoch + ((step % trainer.steps_per_epoch) + 1) / trainer.steps_per_epoch, 4),
        "loss": loss,
        "learning_rate": rate,
        "grad_norm": grad_norm,
        "tokens": trainer.tokens_before + trainer.tokens_seen,
        "tokens_per_second": round(trainer.tokens_seen / max(elapsed, 1e-9), 1),
        "elapsed_seconds": round(elapsed, 3),
        "peak_memory_bytes": peak_bytes(trainer),
    }


def peak_bytes(trainer: Trainer) -> int:
    """The most memory that the model and the library have held since the run began."""
    return peak_memory(trainer.model)
