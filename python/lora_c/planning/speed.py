"""The time of a step, from a measurement of some seconds: passes over a few layers of the model on this machine."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..configs.training import Recompute
from ..training.optimizers import make_optimizer
from ..training.run_settings import run_settings
from .flops import flop_terms
from .sample import sample_architecture, sample_model
from .subject import Subject

SECONDS = 3.0  # that passes are measured, their preparation aside
_SAMPLE = 64 << 20  # parameters of a model that is measured whole
_WIDEST_LAYER = 256 << 20  # parameters of a layer that is not made narrower
_TOKENS = 512, 64  # of the passes through a few layers: first choice, and least
_FEWEST, _MOST = 3, 25  # passes
_SHARE_OF_PEAK = 0.4  # a first guess, which decides the size of the sample alone


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
    layers = int(subject.model.architecture.decoder_kwargs["num_hidden_layers"])
    sample = _sample_for(subject, recompute, seconds)
    is_whole = sample.layers == layers and sample.narrower == 1
    parts = [sample] if is_whole else [replace(sample, layers=max(1, sample.layers // 2)), sample]
    measured = _measured(subject, parts, recompute, seconds)
    if is_whole:
        (passed, updated), where = measured[0], "the whole model"
    else:
        passed, updated = (_scaled(times, parts, layers) for times in zip(*measured, strict=True))
        narrower = f", {sample.narrower} times narrower" if sample.narrower > 1 else ""
        where = f"{parts[0].layers} and {sample.layers} of {layers} layers{narrower}"
    config = subject.config
    tokens = round(config.per_device_train_batch_size * _length(subject))
    how = f"{sample.tokens:,} tokens through {where}"
    return Speed(passed * tokens / sample.tokens, updated, config.gradient_accumulation_steps, tokens, how)


def _scaled(times: tuple[float, ...], parts: list[_Sample], layers: int) -> float:
    """From the time of two depths to that of all layers; the work of a layer grows with the square of its width."""
    (less, more), (few, many) = times, (part.layers for part in parts)
    narrower = parts[0].narrower
    of_layer = max(0.0, more - less) / max(1, many - few)
    rest = max(0.0, less - few * of_layer)
    return rest * narrower + layers * of_layer * narrower**2


def _sample_for(subject: Subject, recompute: Recompute, seconds: float) -> _Sample:
    """The whole where it is small enough for some passes, else few layers and fewer tokens."""
    architecture = subject.model.architecture
    layers = int(architecture.decoder_kwargs["num_hidden_layers"])
    batch, length = subject.config.per_device_train_batch_size, round(_length(subject))
    rate = _SHARE_OF_PEAK * max(_core.fma_peak(), 1e9)
    flops = sum(term.value for term in flop_terms(subject, recompute))
    if subject.model.num_parameters() <= _SAMPLE and batch * length * flops / rate * _FEWEST <= seconds:
        return _Sample(layers, 1, batch, length)
    per_layer, narrower = _layer_parameters(subject), 1
    while per_layer / narrower**2 > _WIDEST_LAYER:
        narrower *= 2
    chosen = min(2, layers)
    of_sample = flops * chosen / layers / narrower**2
    fit = int(seconds / 2 / _FEWEST * rate / max(of_sample, 1.0))
    tokens = min(batch * length, max(_TOKENS[1], min(_TOKENS[0], fit)))
    sequences = max(1, tokens // length)
    return _Sample(chosen, narrower, sequences, min(length, tokens))


def _length(subject: Subject) -> float:
    """Tokens of a sequence in the mean, without virtual ones, which each pass puts before it."""
    return max(2.0, subject.mean_length - subject.model.decoder.virtual_tokens)


def _layer_parameters(subject: Subject) -> int:
    one = sample_architecture(subject.model.architecture, 1)
    return sum(math.prod(spec.shape) for spec in one.weights() if spec.kind == "projection")


class _Runner:
    """Training steps of a sample."""

    def __init__(self, subject: Subject, sample: _Sample, recompute: Recompute, folder: str) -> None:
        self.model = sample_model(subject, sample.layers, sample.narrower)
        self.arrays = _batch(int(self.model.architecture.decoder_kwargs["vocab_size"]), sample, subject)
        self.config = subject.config.model_copy(update={"output_dir": folder, "paged_dir": None})
        self.optimizer = make_optimizer(self.config, self.model.trainable_parameters())
        self.recompute, self.scale = recompute, 1 / sample.tokens
        self.passes: list[float] = []
        self.updates: list[float] = []

    def step(self) -> None:
        """One more."""
        with run_settings(self.model.decoder, self.config, self.recompute):
            begin = time.perf_counter()
            self.optimizer.zero_grad()
            self.model.decoder.forward_backward(*self.arrays, grad_scale=self.scale, dropout_step=len(self.passes))
            between = time.perf_counter()
            self.optimizer.step(max_grad_norm=self.config.max_grad_norm)
        self.passes.append(between - begin)
        self.updates.append(time.perf_counter() - between)


def _measured(subject: Subject, parts: list[_Sample], recompute: Recompute, seconds: float) -> list[tuple[float, float]]:
    """Seconds of a pass and of an update of each sample; they take turns, so that what else runs here hits all of them."""
    with TemporaryDirectory() as folder:
        runners = [_Runner(subject, part, recompute, folder) for part in parts]
        for runner in runners:
            runner.step()  # warms up
            runner.passes.clear(), runner.updates.clear()
        end = time.perf_counter() + seconds
        while len(runners[0].passes) < _FEWEST or (len(runners[0].passes) < _MOST and time.perf_counter() < end):
            for runner in runners:
                runner.step()
        return [(statistics.median(runner.passes), statistics.median(runner.updates)) for runner in runners]


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
