"""The optimizer's step of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DivergenceError
from .schedule import learning_rate

if TYPE_CHECKING:
    from .trainer import Trainer


def update(trainer: Trainer, step: int) -> tuple[float, float]:
    """Change the parameters by their gradients; return the learning rate and the norm of the gradients.

    Above the configuration's `skip_grad_norm` they stay as they are.

    Raises
    ------
    DivergenceError
        A gradient is not finite; no parameter has changed.
    """
    config = trainer.config
    rate = learning_rate(
        step,
        peak=config.learning_rate,
        total_steps=trainer.total_steps,
        warmup_steps=trainer.warmup_steps,
        kind=config.lr_scheduler_type,
        options=config.lr_scheduler_kwargs,
    )
    try:
        norm = trainer.optimizer.step(
            lr=rate, max_grad_norm=config.max_grad_norm or None, skip_grad_norm=config.skip_grad_norm or None
        )
    except ValueError as error:
        got = str(error).partition("got ")[2].partition(";")[0]
        raise DivergenceError(f"expected finite gradients at step {step + 1}, got {got}") from None
    return rate, norm
