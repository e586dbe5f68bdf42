"""The time of a step, from a measurement of some seconds: passes over a few layers of the model on this machine."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..training.optimizers import make_optimizer
from ..training.run_settings import run_settings
from .flops import flop_terms
from .sample import sample_architecture, sample_model
from .subject import Recompute, Subject

SECONDS = 3.0  # that a measurement takes, its preparation aside
_SAMPLE = 64 << 20  # parameters of a sample's layers and of its embedding
_WIDEST_LAYER = 256 << 20  # parameters of a layer that is not made narrower
_RUNS = 5
_SHARE_OF_PEAK = 0.5  # a first guess, which decides the size of the sample alone


@dataclass(frozen=True)
class Speed:
    """What was measured, and what follows for the run.

    Attributes
    ----------
    pass_seconds : float
        Of a micro-batch, forward and backward.
    update_seconds : float
        Of the optimizer.
    passes : int
        Micro-batches of a step.
    tokens : int
        Of a micro-batch.
    how : str
        What it was measured on.
    """

    pass_seconds: float
    update_seconds: float
    passes: int
    tokens: int
    how: str

    @property
    def step_seconds(self) -> float:
        """Of an optimizer step."""
        return self.passes * self.pass_seconds + self.update_seconds

    @property
    def tokens_per_second(self) -> float:
        """Trained."""
        return self.passes * self.tokens / self.step_seconds

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self) | {"step_seconds": self.step_seconds, "tokens_per_second": self.tokens_per_second}


@dataclass(frozen=True)
class _Sample:
    """A part of the work: layers, how much narrower, sequences of so many tokens."""

    layers: int
    narrower: int
    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.length


def measure_speed(subject: Subject, recompute: Recompute, seconds: float = SECONDS) -> Speed:
    """Measure passes over a sample of the model, and scale them to the whole.

    Parameters
    ----------
    seconds : float
        What the passes may take, about.
    """
    architecture = subject.model.architecture
    layers = int(architecture.decoder_kwargs["num_hidden_layers"])
    sample = _sample_for(subject, recompute, seconds)
    passed, updated = _measure(subject, sample, recompute)
    how = f"{sample.tokens:,} tokens through "
    if sample.layers == layers and sample.narrower == 1:
        how += "the whole model"
    else:
        one = _Sample(max(1, sample.layers // 2), sample.narrower, sample.sequences, sample.length)
        passed, updated = (
            _scaled(whole, half, sample, one, layers)
            for whole, half in zip((passed, updated), _measure(subject, one, recompute), strict=True)
        )
        narrower = f", {sample.narrower} times narrower" if sample.narrower > 1 else ""
        how += f"{one.layers} and {sample.layers} of {layers} layers{narrower}"
    batch, length = subject.config.per_device_train_batch_size, subject.mean_length
    tokens = round(batch * length)
    accumulated = subject.config.gradient_accumulation_steps
    return Speed(passed * tokens / sample.tokens, updated, accumulated, tokens, how)


def _scaled(whole: float, half: float, sample: _Sample, one: _Sample, layers: int) -> float:
    """From the time of two depths to that of all layers; the work of a layer grows with the square of its width."""
    of_layer = max(0.0, whole - half) / (sample.layers - one.layers)
    rest = max(0.0, half - one.layers * of_layer)
    return rest * sample.narrower + layers * of_layer * sample.narrower**2


def _sample_for(subject: Subject, recompute: Recompute, seconds: float) -> _Sample:
    architecture = subject.model.architecture
    layers = int(architecture.decoder_kwargs["num_hidden_layers"])
    per_layer = _layer_parameters(subject)
    narrower = 1
    while per_layer / narrower**2 > _WIDEST_LAYER:
        narrower *= 2
    per_layer //= narrower**2
    rest = sum(math.prod(spec.shape) for spec in architecture.weights() if spec.kind in ("embedding", "head")) // narrower
    chosen = layers if layers * per_layer + rest <= _SAMPLE else max(2, min(layers, _SAMPLE // max(1, per_layer)))
    chosen = min(chosen, layers)
    batch, length = subject.config.per_device_train_batch_size, max(2, round(subject.mean_length))
    flops = sum(term.value for term in flop_terms(subject, recompute)) * chosen / layers / narrower**2
    rate = _SHARE_OF_PEAK * max(_core.fma_peak(), 1e9)
    most = max(16, int(seconds / (2 * _RUNS + 2) * rate / max(flops, 1.0)))
    if batch * length > most:
        batch = max(1, most // length)
        length = min(length, most)
    return _Sample(chosen, narrower, batch, length)


def _layer_parameters(subject: Subject) -> int:
    one = sample_architecture(subject.model.architecture, 1)
    return sum(math.prod(spec.shape) for spec in one.weights() if spec.kind == "projection")


def _measure(subject: Subject, sample: _Sample, recompute: Recompute) -> tuple[float, float]:
    """Seconds of a pass and of an update."""
    model = sample_model(subject, sample.layers, sample.narrower)
    arrays = _batch(int(model.architecture.decoder_kwargs["vocab_size"]), sample, subject)
    with TemporaryDirectory() as folder:
        config = subject.config.model_copy(update={"output_dir": folder, "paged_dir": None})
        optimizer = make_optimizer(config, model.trainable_parameters())
        passes, updates = [], []
        with run_settings(model.decoder, config, recompute):
            for number in range(1 + _RUNS):
                begin = time.perf_counter()
                optimizer.zero_grad()
                model.decoder.forward_backward(*arrays, grad_scale=1 / sample.tokens, dropout_step=number)
                between = time.perf_counter()
                optimizer.step(max_grad_norm=config.max_grad_norm)
                passes.append(between - begin)
                updates.append(time.perf_counter() - between)
    return statistics.median(passes[1:]), statistics.median(updates[1:])  # the first one warms up


def _batch(vocab: int, sample: _Sample, subject: Subject) -> tuple[NDArray[Any], ...]:
    ids = np.random.default_rng(0).integers(0, vocab, sample.tokens).astype(np.int32)
    cu_seqlens = np.arange(0, sample.tokens + 1, sample.length, dtype=np.int32)
    labels = subject.model.labels
    weight = np.ones(sample.tokens, np.float32)
    if labels is None:
        weight[cu_seqlens[1:] - 1] = 0
        return ids, cu_seqlens, np.roll(ids, -1), weight
    weight[:] = 0
    weight[cu_seqlens[1:] - 1] = 1
    if labels.problem_type == "single_label_classification":
        return ids, cu_seqlens, np.zeros(sample.tokens, np.int32), weight
    return ids, cu_seqlens, np.zeros((sample.tokens, len(labels)), np.float32), weight
