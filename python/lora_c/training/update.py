"""The optimizer's step of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import DivergenceError
from .schedule import learning_rate

if TYPE_CHECKING:
    from .trainer import Trainer

_PIECE = 1 << 20


def grad_norm(trainer: Trainer) -> float:
    """Return the norm over all gradients."""
    total = 0.0
    for parameter in trainer.parameters:
        for of_piece in squares(parameter.grad):
            total += of_piece
    return math.sqrt(total)


def squares(array: NDArray[np.float32] | None) -> Iterator[float]:
    """Yield sums of squares in float64, each of a piece of the array."""
    values = np.zeros(0, np.float32) if array is None else array.reshape(-1)
    for start in range(0, values.size, _PIECE):
        yield float(np.square(values[start : start + _PIECE], dtype=np.float64).sum())


def update(trainer: Trainer, step: int) -> tuple[float, float]:
    """Change the parameters by their gradients; return the learning rate and the norm of the gradients.

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
        return rate, trainer.optimizer.step(lr=rate, max_grad_norm=config.max_grad_norm or None)
    except ValueError as error:
        got = str(error).partition("got ")[2].partition(";")[0]
        raise DivergenceError(f"expected finite gradients at step {step + 1}, got {got}") from None
