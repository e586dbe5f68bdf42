"""Learning-rate schedules behind a linear warm-up, with transformers' names, options and formulas (`get_scheduler`).

Each schedule says which share of the peak a step has; the steps of the warm-up are the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Course:
    """Where a step stands: steps behind the warm-up, of so many; the steps of the warm-up; the rate at the peak."""

    step: int
    n_steps: int
    warmup: int
    peak: float

    @property
    def progress(self) -> float:
        """0 at the end of the warm-up, 1 at the end of the run."""
        return self.step / max(1, self.n_steps)


def _constant(course: Course) -> float:
    return 1.0


def _linear(course: Course) -> float:
    return max(0.0, 1.0 - course.progress)


def _half_cosine(progress: float, num_cycles: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * 2.0 * num_cycles * progress))


def _cosine(course: Course, num_cycles: float = 0.5, min_lr_rate: float = 0.0) -> float:
    return max(0.0, _half_cosine(min(1.0, course.progress), num_cycles) * (1.0 - min_lr_rate) + min_lr_rate)


def _cosine_with_min_lr(
    course: Course, num_cycles: float = 0.5, min_lr: float = 0.0, min_lr_rate: float | None = None
) -> float:
    return _cosine(course, num_cycles, min_lr / course.peak if min_lr_rate is None else min_lr_rate)


def _cosine_with_restarts(course: Course, num_cycles: float = 1.0) -> float:
    if course.progress >= 1.0:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * (num_cycles * course.progress % 1.0)))


def _polynomial(course: Course, power: float = 1.0, lr_end: float = 1e-7) -> float:
    left = max(0.0, 1.0 - course.progress)
    return ((course.peak - lr_end) * left**power + lr_end) / course.peak


def _inverse_sqrt(course: Course, timescale: float | None = None) -> float:
    scale = timescale or course.warmup or 10_000
    return 1.0 / math.sqrt((course.step + scale) / scale)


_DECAYS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda progress, _: 1.0 - progress,
    "cosine": _half_cosine,
    "1-sqrt": lambda progress, _: 1.0 - math.sqrt(progress),
}


def _warmup_stable_decay(
    course: Course, num_decay_steps: float = 0, num_stable_steps: float | None = None, min_lr_ratio: float = 0.0,
    decay_type: str = "cosine", num_cycles: float = 0.5,
) -> float:  # fmt: skip
    """At the peak, and down at the end: WSD, arXiv:2404.06395, section 4."""
    n_decay = num_decay_steps or max(2, course.n_steps // 10)  # the first of them is still at the peak
    n_stable = course.n_steps - n_decay if num_stable_steps is None else num_stable_steps
    if course.step < n_stable:
        return 1.0
    if course.step >= n_stable + n_decay:
        return min_lr_ratio
    factor = _DECAYS[decay_type]((course.step - n_stable) / max(1, n_decay), num_cycles)
    return max(0.0, factor * (1.0 - min_lr_ratio) + min_lr_ratio)


# transformers' name to the schedule. Its "constant" has no warm-up; here a warm-up that is asked for is one.
SCHEDULES: dict[str, Callable[..., float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
    "constant_with_warmup": _constant,
    "cosine_with_restarts": _cosine_with_restarts,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "polynomial": _polynomial,
    "inverse_sqrt": _inverse_sqrt,
    "warmup_stable_decay": _warmup_stable_decay,
}


def learning_rate(
    step: int, *, peak: float, total_steps: int, warmup_steps: int, kind: str, options: Mapping[str, Any] | None = None
) -> float:
    """Return the rate of an optimizer step.

    Parameters
    ----------
    step : int
        Counted from 0.
    peak : float
        The rate at the end of the warm-up.
    total_steps, warmup_steps : int
        Of the run; those of the warm-up are the first of them.
    kind : str
        One of `SCHEDULES`.
    options : mapping, optional
        Of the schedule (`lr_scheduler_kwargs`).
    """
    if step < warmup_steps:
        lowest = (options or {}).get("min_lr_ratio", 0.0)  # WSD rises from where it falls to
        return peak * (step / max(1, warmup_steps) * (1.0 - lowest) + lowest)
    course = Course(step - warmup_steps, total_steps - warmup_steps, warmup_steps, peak)
    return peak * SCHEDULES[kind](course, **(options or {}))
