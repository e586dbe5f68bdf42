"""What is planned: a model without values, on which everything is that a run would train."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from tempfile import gettempdir
from typing import Any

from ..configs import AdapterConfig, StackConfig, TrainConfig
from ..configs.training import Recompute
from ..errors import ConfigError, nearest
from ..families.shapes import SHAPES
from ..model.meta_model import MetaModel, meta_model_of_shape, open_meta
from ..training.base_options import add_adapters, base_options, quantization_for
from ..training.memory import MemoryForecast, chooses_recompute, first_within, forecast_model, limit_of_auto, most_tokens
from ..weights.parameter_values import META

_MOST_TOKENS = 2**31 - 1  # of a pass


@dataclass(frozen=True)
class Subject:
    """A model and a run of it.

    Attributes
    ----------
    name : str
        What was given: a path, or the name of a shape.
    source : str
        Where its sizes stand.
    model : MetaModel
        Without values, with what is trained.
    config : TrainConfig
        Of the run.
    adapter : AdapterConfig, StackConfig or None
        What is put on the model.
    lengths : sequence of int
        Tokens of each sequence, where the data are known; else every one is as long as it may be.
    remake : callable
        Makes the subject of another configuration whose model is another.
    """

    name: str
    source: str
    model: MetaModel
    config: TrainConfig
    adapter: AdapterConfig | StackConfig | None = None
    lengths: Sequence[int] = ()
    remake: Callable[[TrainConfig], Subject] | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that there can be."""
        return self.longest_of(self.config)

    def longest_of(self, config: TrainConfig) -> int:
        """The same of a run with other options."""
        limit = min(config.max_seq_length, self.model.context_length)
        return min(limit, max(self.lengths)) if self.lengths else limit

    @property
    def mean_length(self) -> float:
        """Tokens of a sequence in the mean, virtual ones included."""
        limit = self.longest
        mean = sum(min(n, limit) for n in self.lengths) / len(self.lengths) if self.lengths else limit
        return float(mean) + self.model.decoder.virtual_tokens

    def with_config(self, config: TrainConfig) -> Subject:
        """The same with other options of the run."""
        if _of_base(config) == _of_base(self.config) or self.remake is None:
            return replace(self, config=config)
        return replace(self.remake(config), lengths=self.lengths)

    def micro_batch(self, config: TrainConfig | None = None) -> tuple[int, int]:
        """The most tokens of a micro-batch, virtual ones included, and how many sequences it has.

        Raises
        ------
        ConfigError
            They are more than a pass can have.
        """
        config = config or self.config
        limit, batch = self.longest_of(config), config.per_device_train_batch_size
        virtual = self.model.decoder.virtual_tokens
        if not self.lengths:
            tokens = batch * (limit + virtual)
            if tokens > _MOST_TOKENS:
                raise ConfigError(
                    f"per_device_train_batch_size: expected micro-batches of at most 2**31 - 1 tokens, got {batch:,} "
                    f"sequences of {limit + virtual:,}; --gradient-accumulation-steps has them one after the other"
                )
            return tokens, batch
        return most_tokens([min(n, limit) for n in self.lengths], batch, virtual), min(batch, len(self.lengths))

    def forecast(self, config: TrainConfig | None = None, recompute: Recompute | None = None) -> MemoryForecast:
        """What a run takes of the memory of its device: with other options, where they are given."""
        config = config or self.config
        recompute = recompute or ("none" if config.recompute == "auto" else config.recompute)
        with _settings(self.model, config, recompute):
            n_tokens, n_segments = self.micro_batch(config)
            return forecast_model(self.model, n_tokens, config, n_segments)

    def recompute_within(self, free: int | None, config: TrainConfig | None = None) -> Recompute:
        """What recompute=auto comes to where so many bytes are free before anything is loaded; None: nobody knows."""
        config = config or self.config
        if config.recompute != "auto":
            return config.recompute
        if not chooses_recompute(config) or (config.memory_limit is None and free is None):
            return "none"
        forecast_with = cache(partial(self.forecast, config))
        if config.memory_limit is not None:
            limit = config.memory_limit * 2**30
        else:
            plan = forecast_with("none")
            limit = limit_of_auto(plan, max(0, (free or 0) - plan.base - plan.parameters - plan.gradients))
        return first_within(limit, forecast_with)


def _of_base(config: TrainConfig) -> tuple[Any, ...]:
    """What decides how the base is kept."""
    return config.method, config.quant_type, config.block_size, config.double_quant


@contextmanager
def _settings(model: MetaModel, config: TrainConfig, recompute: Recompute) -> Iterator[None]:
    """What a run would set on the decoder; nothing is made on a disk."""
    if config.precision == "int8" and model.device != META:
        raise ConfigError("precision: expected exact or fast on a GPU, got int8, which is of CPUs; leave it out")
    if config.activation_dtype == "int8" and model.device != META:
        raise ConfigError("activation_dtype: expected float32 or bfloat16 on a GPU, got int8, which is of CPUs")
    decoder = model.decoder
    before = decoder.activation_dtype, decoder.recompute, decoder.precision, decoder.activation_offload
    decoder.activation_dtype, decoder.recompute, decoder.precision = config.activation_dtype, recompute, config.precision
    decoder.activation_offload = gettempdir() if config.activation_offload else None
    try:
        yield
    finally:
        decoder.activation_dtype, decoder.recompute, decoder.precision, decoder.activation_offload = before


def subject_of_shape(
    name: str, config: TrainConfig, adapter: AdapterConfig | StackConfig | None, device: str = META
) -> Subject:
    """Plan a run of a model of a well-known shape, whose files are taken to be bfloat16.

    Parameters
    ----------
    device : str
        "meta" for the CPU, "meta:8.6" for a GPU by its compute capability.

    Raises
    ------
    ConfigError
        There is no such shape.
    """
    shape = SHAPES.get(name)
    if shape is None:
        raise ConfigError(f"shape: expected one of {', '.join(SHAPES)}, got {name!r}{nearest(name, SHAPES)}")
    quantization = quantization_for(config) if config.method == "qlora" else None
    trainable: Any = config.method if config.method in ("head", "full") else "none"
    model = meta_model_of_shape(name, shape.config, quantization, trainable, device)
    remake = partial(subject_of_shape, name, adapter=adapter, device=device)
    return _with_adapters(Subject(name, shape.source, model, config, adapter, remake=remake))


def subject_of_path(
    path: str | os.PathLike[str], config: TrainConfig, adapter: AdapterConfig | StackConfig | None, device: str = META,
    **task: Any,
) -> Subject:  # fmt: skip
    """Plan a run of a model folder or a GGUF file, of which only the headers are read.

    Parameters
    ----------
    device : str
        As `subject_of_shape` takes it.
    **task
        What `load_model` takes of classifiers.

    Raises
    ------
    CheckpointError
        It cannot be used.
    """
    model = open_meta(path, device=device, **base_options(path, config), **task)
    remake = partial(subject_of_path, path, adapter=adapter, device=device, **task)
    return _with_adapters(Subject(os.fspath(path), str(model.source), model, config, adapter, remake=remake))


def _with_adapters(subject: Subject) -> Subject:
    if subject.config.method in ("lora", "qlora") and subject.adapter is not None:
        add_adapters(subject.model, subject.adapter)
    return subject
