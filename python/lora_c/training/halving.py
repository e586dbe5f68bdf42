"""Successive halving: all trials run a few steps, the better ones more, one of them to the end.

Source: Jamieson and Talwalkar 2016, arXiv:1502.07943; Li et al. 2018, arXiv:1603.06560, with its factor of 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True)
class Rung:
    """So many trials have done so many steps when they are compared."""

    steps: int
    trials: int


def rungs(n_trials: int, total_steps: int, factor: int) -> list[Rung]:
    """Return the rungs from the first to the one that a single trial reaches, which is the end of its run.

    Parameters
    ----------
    n_trials : int
        That begin.
    total_steps : int
        Of a whole run.
    factor : int
        Of so many trials one goes on, for so many times the steps.

    Raises
    ------
    ConfigError
        The run is too short to be divided so.
    """
    if factor < 2:
        raise ConfigError(f"factor: expected 2 or more, got {factor}")
    counts = [n_trials]
    while counts[-1] > 1:
        counts.append(-(-counts[-1] // factor))
    least = factor ** (len(counts) - 1)
    if total_steps < least:
        raise ConfigError(
            f"max_steps: expected {least} steps or more for {n_trials} rates with a factor of {factor}, got a run of "
            f"{total_steps}; give a larger --max-steps or --epochs, or fewer --trials"
        )
    return [Rung(-(-total_steps // factor ** (len(counts) - 1 - i)), count) for i, count in enumerate(counts)]


def learning_rates(low: float, high: float, n: int) -> list[float]:
    """Return n rates from low to high, each as many times the one before, in three digits.

    Raises
    ------
    ConfigError
        They are not in this order, or so close that two are one.
    """
    if not 0.0 < low < math.inf:
        raise ConfigError(f"lr_min: expected a finite rate above 0, got {low:g}")
    if not low < high or not math.isfinite(high / low):
        raise ConfigError(f"lr_max: expected a finite rate above lr_min ({low:g}), got {high:g}")
    if n < 2:
        raise ConfigError(f"trials: expected 2 rates or more, got {n}")
    found = [float(f"{low * (high / low) ** (i / (n - 1)):.2e}") for i in range(n)]
    if len(set(found)) < n:
        raise ConfigError(f"trials: expected rates that differ in three digits, got {n} from {low:g} to {high:g}; give fewer")
    return found


def best_of(losses: Mapping[float, float | None], n: int) -> list[float]:
    """Return the n rates with the least losses, the lower one of two that agree; None: it diverged, and comes last."""
    ranked = sorted(losses, key=lambda rate: (losses[rate] is None, losses[rate] or 0.0, rate))
    return sorted(ranked[:n])
