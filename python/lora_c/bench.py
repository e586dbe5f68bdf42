"""The speed and memory of a training step, and where its time goes: what ``lora-c bench`` measures."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from .errors import ConfigError
from .files.system import page_faults
from .training.memory import peak_memory

if TYPE_CHECKING:
    from .model.model import Model


_WIDE = 84  # columns of the whole table


@dataclass
class StepMeasurement:
    """Some training steps of the same size. Bytes are the library's own accounts."""

    tokens: int
    seconds: list[float]
    forecast_bytes: int
    peak_bytes: int
    page_faults: int  # of the timed steps together; a steady state has next to none
    profile: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / statistics.median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        values: dict[str, Any] = {"tokens_per_step": self.tokens, "tokens_per_second": self.tokens_per_second}
        values |= {"step_seconds": self.seconds, "peak_memory_bytes": self.peak_bytes}
        values |= {"forecast_memory_bytes": self.forecast_bytes, "page_faults": self.page_faults}
        return values | ({"profile": self.profile} if self.profile else {})

    def describe(self) -> str:
        best = self.tokens / min(self.seconds)
        return (
            f"{self.tokens_per_second:,.0f} tokens/s (best {best:,.0f}), {statistics.median(self.seconds):.3f} s a step of "
            f"{self.tokens:,} tokens, peak {self.peak_bytes / 2**20:,.1f} MiB (forecast {self.forecast_bytes / 2**20:,.1f}), "
            f"{self.page_faults / len(self.seconds):,.0f} page faults a step"
        )


@dataclass
class DecodeMeasurement:
    """The decoding of one sequence, token by token, behind a prompt that was read in one call."""

    prompt_tokens: int
    prompt_seconds: float
    seconds: list[float]  # of each token
    peak_bytes: int

    @property
    def tokens_per_second(self) -> float:
        return 1 / statistics.median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        values: dict[str, Any] = {"prompt_tokens": self.prompt_tokens, "prompt_seconds": self.prompt_seconds}
        values |= {"tokens": len(self.seconds), "tokens_per_second": self.tokens_per_second}
        return values | {"token_seconds": self.seconds, "peak_memory_bytes": self.peak_bytes}

    def describe(self) -> str:
        return (
            f"decoding: {self.tokens_per_second:,.1f} tokens/s at batch 1 ({len(self.seconds):,} tokens behind "
            f"{self.prompt_tokens:,}, which took {self.prompt_seconds:.3f} s), peak {self.peak_bytes / 2**20:,.1f} MiB"
        )


class StepBench:
    """A model with something to train, an optimizer, and a batch of random tokens with loss on every position."""

    def __init__(self, model: Model, batch: int, length: int, seed: int = 0) -> None:
        limit, vocab = model.context_length, int(model.architecture.decoder_kwargs["vocab_size"])
        if not 2 <= length <= limit:
            raise ConfigError(f"length: expected 2 to {limit:,} (the model's context), got {length:,}")
        if batch < 1:
            raise ConfigError(f"batch: expected at least 1 sequence, got {batch}")
        self.model = model
        self.ids = np.random.default_rng(seed).integers(0, vocab, batch * length).astype(np.int32)
        self.cu_seqlens = np.arange(0, batch * length + 1, length, dtype=np.int32)
        self.targets = np.roll(self.ids, -1)
        self.loss_weight = np.ones(len(self.ids), np.float32)
        self.loss_weight[self.cu_seqlens[1:] - 1] = 0
        self.optimizer = _core.AdamW(model.trainable_parameters(), lr=1e-4)
        self.steps = 0

    def step(self) -> float:
        """Train one step; return the mean loss before it."""
        weight = float(self.loss_weight.sum())
        self.optimizer.zero_grad()
        loss = self.model.decoder.forward_backward(
            self.ids, self.cu_seqlens, self.targets, self.loss_weight, grad_scale=1 / weight, dropout_step=self.steps
        )
        self.optimizer.step(max_grad_norm=1.0)
        self.steps += 1
        return loss / weight

    def measure_one(self) -> float:
        """Train one step; return its seconds."""
        begin = time.perf_counter()
        self.step()
        return time.perf_counter() - begin

    def measure(self, steps: int, *, profile: bool = False) -> StepMeasurement:
        """One step that warms up, then ``steps`` timed ones; with ``profile`` the costs are those of the timed ones."""
        from .training.memory import forecast_model

        plan = forecast_model(self.model, len(self.ids), n_segments=len(self.cu_seqlens) - 1)
        _core.reset_peak_memory(self.model.device)
        self.step()
        seconds = []
        if profile:
            _core.set_profiling(True)
        faults = page_faults()
        for _ in range(max(1, steps)):
            seconds.append(self.measure_one())
        faults = page_faults() - faults
        costs = _core.profile_report() if profile else {}
        _core.set_profiling(False)
        return StepMeasurement(len(self.ids), seconds, plan.total, peak_memory(self.model), faults, costs)


class DecodeBench:
    """A language model that decodes greedily behind a random prompt, with the adapter that is in use; it needs no tokenizer.

    Parameters
    ----------
    model : Model
        The model.
    tokens, prompt : int
        Lengths of the answer, which no token ends, and of the prompt; by default that takes what the context has left, up to
        512 tokens.
    seed : int
        Of the prompt.

    Raises
    ------
    ConfigError
        There are no tokens, or more than the context holds.
    """

    def __init__(self, model: Model, tokens: int, prompt: int | None = None, seed: int = 0) -> None:
        limit, vocab = model.context_length, int(model.architecture.decoder_kwargs["vocab_size"])
        prompt = max(1, min(512, limit - tokens)) if prompt is None else prompt
        if tokens < 1 or prompt < 1 or prompt + tokens > limit:
            raise ConfigError(
                f"decode: expected 1 to {limit - prompt:,} tokens behind {prompt:,} (context {limit:,}), got {tokens:,}"
            )
        self.model, self.tokens = model, tokens
        self.ids = np.random.default_rng(seed).integers(0, vocab, prompt).astype(np.int32)

    def measure(self) -> DecodeMeasurement:
        """Read the prompt, then decode."""
        self.model.free_activations()
        _core.reset_peak_memory(self.model.device)
        virtual = self.model.context_with(None) - self.model.context_length
        cache = self.model.decoder.new_cache(virtual + len(self.ids) + self.tokens)
        ids: Any = self.ids
        seconds = []
        for _ in range(1 + self.tokens):
            begin = time.perf_counter()
            logits = self.model.decoder.decode(cache, ids)
            ids = [int(logits[0].argmax())]
            seconds.append(time.perf_counter() - begin)
        return DecodeMeasurement(len(self.ids), seconds[0], seconds[1:], peak_memory(self.model))


def profile_table(measured: StepMeasurement, peak_flops: float, columns: int | None = None) -> str:
    """One line an operation, the most expensive first.

    Parameters
    ----------
    peak_flops : float
        The machine's float32 multiply-adds, flop/s.
    columns : int, optional
        Width of the terminal; a narrow one gets no calls and no bytes.
    """
    steps, whole, is_wide = len(measured.seconds), sum(measured.seconds), columns is None or columns >= _WIDE
    calls, moved = (f"{'calls':>8}", f"{'MB moved':>11}{'GB/s':>8}") if is_wide else ("", "")
    lines = [f"{'operation':<20}{calls}{'ms':>10}{'time':>8}{'GFLOP/s':>10}{'of peak':>9}{moved}"]
    costs = sorted(measured.profile.items(), key=lambda item: -item[1]["seconds"])
    for name, cost in costs:
        seconds = max(cost["seconds"], 1e-9)
        rate = cost["flops"] / seconds
        speed = f"{rate / 1e9:>10,.1f}" if rate else f"{'':>10}"
        share = f"{100 * rate / peak_flops:>7.0f} %" if rate and peak_flops else f"{'':>9}"
        calls = f"{cost['calls'] / steps:>8,.0f}" if is_wide else ""
        when = f"{name:<20}{calls}{1e3 * seconds / steps:>10,.2f}{100 * seconds / whole:>6.1f} %"
        moved = f"{cost['bytes'] / steps / 1e6:>11,.1f}{cost['bytes'] / seconds / 1e9:>8,.1f}" if is_wide else ""
        lines.append((when + speed + share + moved).rstrip())
    rest = max(0.0, whole - sum(cost["seconds"] for _, cost in costs))
    calls = f"{'':>8}" if is_wide else ""
    lines.append(f"{'everything else':<20}{calls}{1e3 * rest / steps:>10,.2f}{100 * rest / whole:>6.1f} %")
    total = sum(cost["flops"] for _, cost in costs) / whole
    share = f", {100 * total / peak_flops:.0f} % of this machine's {peak_flops / 1e9:,.0f} (float32 FMA)" if peak_flops else ""
    lines.append(f"the whole step: {total / 1e9:,.1f} GFLOP/s{share}")
    return "\n".join(lines)
