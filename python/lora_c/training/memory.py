"""The memory of a training run, known before it starts, and what is done where it is too much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from .. import _core
from ..configs import TrainConfig
from ..configs.training import RECOMPUTES, Recompute
from ..errors import ConfigError
from ..model.meta_model import MetaModel
from .optimizers import state_bytes, work_bytes

if TYPE_CHECKING:
    from ..model.model import Model
    from .trainer import Trainer


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes by purpose, on the device of the model. ``base`` counts weights held by this process; a memory-mapped weight
    counts when it is read."""

    base: int
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    scratch: int
    offloaded: int = 0  # activations in memory of the host, not of the device: not in the total

    @property
    def total(self) -> int:
        return self.base + self.parameters + self.gradients + self.optimizer + self.activations + self.scratch

    def describe(self) -> str:
        parts = [("base", self.base), ("trained", self.parameters), ("gradients", self.gradients)]
        parts += [("optimizer", self.optimizer), ("activations", self.activations), ("scratch", self.scratch)]
        listed = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in parts if size)
        beside = f", and {self.offloaded / 2**20:,.1f} of activations off-loaded to the host" if self.offloaded else ""
        return f"{self.total / 2**20:,.1f} MiB forecast ({listed}){beside}"


def largest_micro_batch(trainer: Trainer) -> int:
    """The most tokens that one micro-batch can hold: the longest sequences together, with the adapter's tokens before each."""
    return most_tokens(
        [len(s) for s in trainer.train_data.samples],
        trainer.config.per_device_train_batch_size,
        trainer.model.decoder.virtual_tokens,
    )


def most_tokens(lengths: Sequence[int], batch_size: int, n_virtual: int) -> int:
    """The most tokens of a micro-batch of sequences with these lengths, each behind so many virtual ones."""
    longest = np.sort(lengths)[::-1][:batch_size]
    return int(longest.sum()) + len(longest) * n_virtual


def forecast(trainer: Trainer) -> MemoryForecast:
    with trainer.settings():
        return forecast_model(
            trainer.model, largest_micro_batch(trainer), trainer.config, trainer.config.per_device_train_batch_size
        )


def forecast_model(
    model: Model, n_tokens: int, config: TrainConfig | None = None, n_segments: int | None = None
) -> MemoryForecast:
    """The memory of training what is trainable in model, with micro-batches of up to n_tokens in n_segments sequences (not
    given: any number) and the optimizer of config."""
    config = config or TrainConfig()
    parameters = model.trainable_parameters()
    trained = sum(p.size for p in parameters) * 4
    return MemoryForecast(
        base=_base_bytes(model),
        parameters=trained,
        gradients=trained * config.gradient_accumulation_steps.bit_length(),  # with the partial sums of micro-batches
        optimizer=state_bytes(config, parameters),
        activations=model.decoder.arena_bytes(n_tokens, training=True),
        scratch=model.decoder.scratch_bytes(n_tokens, n_segments) + work_bytes(config, parameters),
        offloaded=model.decoder.offload_bytes(n_tokens),
    )


def _base_bytes(model: Model) -> int:
    """Of the weights that are not trained; of plain arrays, too, a device other than the CPU holds copies."""
    if isinstance(model, MetaModel):
        return model.base_bytes()
    live = _core.memory_report(model.device)["base weights"]["live"]
    return live + model.dense_bytes() if model.device == "cpu" else live


def kept_text(recompute: str, activation_dtype: str) -> str:
    """How activations are kept, as the end of a line; nothing where it is all of them in float32."""
    dtype = "" if activation_dtype == "float32" else f", activations in {activation_dtype}"
    return dtype + ("" if recompute == "none" else f", recompute {recompute}")


def peak_memory(model: Model) -> int:
    """Return the most bytes that there were on the model's device since the last reset."""
    peak = _core.memory_report(model.device)["total"]["peak"]
    return peak + (model.dense_bytes() if model.device == "cpu" else 0)


def chooses_recompute(config: TrainConfig) -> bool:
    """Whether recompute=auto looks at the memory. What is computed again of rounded activations has other bits: then only at a
    limit that was given, so that what happens to be free decides no result."""
    return config.recompute == "auto" and (config.activation_dtype == "float32" or config.memory_limit is not None)


def recompute_of(trainer: Trainer) -> Recompute:
    """What a run keeps for its backward pass, where its configuration leaves that to the memory that there is."""
    config = trainer.config
    if not chooses_recompute(config):
        return "none" if config.recompute == "auto" else config.recompute
    return choose_recompute(
        trainer.model, largest_micro_batch(trainer), config.memory_limit, config, config.per_device_train_batch_size
    )


def choose_recompute(
    model: Model,
    n_tokens: int,
    limit_gib: float | None,
    config: TrainConfig | None = None,
    n_segments: int | None = None,
) -> Recompute:
    """Choose what computes the least again of what stays within the limit, by default what lives already and 80 % of what
    is free on its device (where that is known).

    Raises
    ------
    ConfigError
        The limit was given and not even the forecast of "layer" stays within it.
    """
    left = _core.memory_info(model.device)["free"]
    if limit_gib is None and left is None:
        return "none"

    @cache
    def forecast_with(recompute: Recompute) -> MemoryForecast:
        return _forecast_with(model, n_tokens, recompute, config, n_segments)

    limit = limit_gib * 2**30 if limit_gib else limit_of_auto(forecast_with("none"), left or 0)
    chosen = first_within(limit, forecast_with)
    least = forecast_with(chosen)
    if limit_gib and least.total > limit:
        raise ConfigError(
            f"memory_limit: expected at least {least.total / 2**30:.3g} GiB for micro-batches of {n_tokens:,} tokens "
            f"({least.describe()} with recompute=layer), got {limit_gib:g}; lower per_device_train_batch_size or "
            "max_seq_length, or raise the limit"
        )
    return chosen


def first_within(limit: float, forecast_with: Callable[[Recompute], MemoryForecast]) -> Recompute:
    """What computes the least again of what stays within so many bytes; the last one where nothing does."""
    return next((recompute for recompute in RECOMPUTES if forecast_with(recompute).total <= limit), RECOMPUTES[-1])


def limit_of_auto(plan: MemoryForecast, left: int) -> float:
    """The bytes within which recompute=auto keeps all activations, where nobody gave a limit: what lives already, and 80 % of
    what is left beside it."""
    return plan.base + plan.parameters + plan.gradients + 0.8 * left


def _forecast_with(
    model: Model, n_tokens: int, recompute: Recompute, config: TrainConfig | None, n_segments: int | None
) -> MemoryForecast:
    decoder, before = model.decoder, model.decoder.recompute
    decoder.recompute = recompute
    try:
        return forecast_model(model, n_tokens, config, n_segments)
    finally:
        decoder.recompute = before
