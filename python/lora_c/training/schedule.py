"""Learning-rate schedules with linear warm-up, as in transformers."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, total_steps: int, warmup_steps: int, kind: str) -> float:
    """The rate of optimizer step ``step`` (from 0).

    It rises from 0 to ``peak`` over the warm-up; then it falls linearly to 0, as half a cosine to 0, or stays.

    Source
    ------
    transformers' get_linear_schedule_with_warmup, get_cosine_schedule_with_warmup, get_constant_schedule_with_warmup.
    """
    if step < warmup_steps:
        return peak * step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if kind == "linear":
        return peak * max(0.0, 1.0 - progress)
    if kind == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    if kind == "constant":
        return peak
    raise ValueError(f"lr_scheduler_type: expected 'linear', 'cosine' or 'constant', got {kind!r}")
