"""The memory of a training run, known before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import _core

if TYPE_CHECKING:
    from .model import Model
    from .trainer import Trainer


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes by purpose. ``base`` counts weights held by this process; a memory-mapped weight counts when it is read."""

    base: int
    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.base + self.parameters + self.gradients + self.optimizer + self.activations

    def describe(self) -> str:
        parts = [("base", self.base), ("trained", self.parameters), ("gradients", self.gradients)]
        parts += [("optimizer", self.optimizer), ("activations", self.activations)]
        listed = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in parts if size)
        return f"{self.total / 2**20:,.1f} MiB forecast ({listed})"


def largest_micro_batch(trainer: Trainer) -> int:
    """The most tokens that one micro-batch can hold: the longest sequences together."""
    lengths = np.sort([len(s) for s in trainer.train_data.samples])[::-1]
    return int(lengths[: trainer.config.per_device_train_batch_size].sum())


def forecast(trainer: Trainer) -> MemoryForecast:
    return forecast_model(trainer.model, largest_micro_batch(trainer))


def forecast_model(model: Model, n_tokens: int) -> MemoryForecast:
    """The memory of training what is trainable in model, with micro-batches of up to n_tokens."""
    report = _core.memory_report()
    trained = sum(p.size for p in model.trainable_parameters()) * 4
    return MemoryForecast(
        base=report["base weights"]["live"] + model.dense_bytes(),
        parameters=trained,
        gradients=trained,
        optimizer=2 * trained,
        activations=model.decoder.arena_bytes(n_tokens, training=True),
    )
