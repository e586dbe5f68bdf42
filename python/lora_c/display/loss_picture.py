"""How loss.png is drawn: the loss of one run or of several over the steps, and the learning rate below it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#2171b5", "#d94801", "#238b45", "#6a51a3", "#a63603", "#525252", "#c51b8a", "#006d5b")
_HELD_OUT = "#d94801"
_SMOOTH_FROM = 50  # steps; fewer are drawn as they are
_LOG_FROM = 8.0  # highest to lowest loss, from which on a linear axis would show a flat line

Points = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass
class Curve:
    """What a run has logged, without the values that are no numbers."""

    name: str
    train: Points = field(repr=False)
    held_out: Points = field(repr=False)
    rate: Points = field(repr=False)

    @classmethod
    def of(cls, history: list[dict[str, Any]], name: str = "") -> Curve:
        """Take the records of a history or of metrics.jsonl."""
        return cls(name, *(_points(history, key) for key in ("loss", "eval_loss", "learning_rate")))

    @property
    def window(self) -> int:
        """Steps of a point of the running mean; 1: so few steps that there is none."""
        return len(self.train[0]) // 25 if len(self.train[0]) >= _SMOOTH_FROM else 1

    def smooth(self, high: float) -> Points:
        """The running mean of the training loss, from the first full window on; a spike counts as ``high``."""
        steps, losses = self.train
        sums = np.cumsum(np.concatenate([[0.0], np.minimum(losses, high)]))
        return steps[self.window - 1 :], (sums[self.window :] - sums[: -self.window]) / self.window


def _points(history: list[dict[str, Any]], key: str) -> Points:
    pairs = [(r["step"], r[key]) for r in history if _is_number(r.get("step")) and _is_number(r.get(key))]
    array = np.asarray(pairs, np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def loss_range(curves: list[Curve]) -> tuple[float, float, bool]:
    """Lowest and highest loss to show, and whether the axis is logarithmic.

    A spike, and a start far above everything else, is beyond the range; what is usual is not pressed to a line by it.
    """
    values = np.concatenate([part for curve in curves for part in (curve.train[1], curve.held_out[1])])
    ends = np.quantile(values, [0.05, 0.99]) if len(values) > 20 else np.asarray([values.min(), values.max()])
    is_log = bool(values.min() > 0 and ends[1] > _LOG_FROM * ends[0])
    shown = np.log(values) if is_log else values
    low, high = np.log(ends) if is_log else ends
    spread = high - low
    low, high = max(shown.min(), low - spread / 2), min(shown.max(), high + spread / 2)
    margin = 0.05 * (high - low) or (0.05 if is_log else 0.05 * abs(high) or 0.05)
    low, high = float(low - margin), float(high + margin)
    return (math.exp(low), math.exp(high), True) if is_log else (low, high, False)


def draw(figure: Figure, curves: list[Curve], title: str) -> None:
    """Fill a figure with what the curves have."""
    has_rate = any(len(curve.rate[0]) for curve in curves)
    if has_rate:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        _draw_rates(bottom, curves)
    else:
        top = bottom = figure.subplots()
    _draw_losses(top, curves)
    top.set_title(title, loc="left", fontsize=10, parse_math=False)
    bottom.set_xlabel("optimizer step")
    _set_steps(bottom, curves)
    for axes in {top, bottom}:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)


def _draw_losses(axes: Axes, curves: list[Curve]) -> None:
    is_one = len(curves) == 1
    low, high, is_log = loss_range(curves)
    for curve, colour in zip(curves, _colours(len(curves)), strict=True):
        raw = curve.train
        own = "" if is_one else f" {curve.name}: "  # a label that begins with _ would be left out
        if curve.window > 1:
            axes.plot(*raw, color=colour, alpha=0.3, linewidth=0.7, label="training, each step" if is_one else None)
            axes.plot(
                *curve.smooth(high), color=colour, linewidth=1.8, label=f"{own or 'training, '}mean of {curve.window} steps"
            )
        elif len(raw[0]):
            axes.plot(*raw, color=colour, linewidth=1.5, marker="o", markersize=3, label=own + "training, each step")
        if len(curve.held_out[0]):
            held = _HELD_OUT if is_one else colour
            axes.plot(
                *curve.held_out, color=held, marker="D", markersize=4.5, linewidth=1.2, linestyle="--", label=own + "held out"
            )
    if is_log:
        _make_logarithmic(axes, low, high)
    axes.set_ylim(low, high)
    axes.set_ylabel("loss: nats per token" + (", logarithmic" if is_log else ""))
    _mark_spikes(axes, curves, high)
    legend = axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, borderaxespad=0.3)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _make_logarithmic(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_yscale("log")
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _mark_spikes(axes: Axes, curves: list[Curve], high: float) -> None:
    """Triangles at the upper edge where a value is beyond it, with the number of the highest."""
    for curve, colour in zip(curves, _colours(len(curves)), strict=True):
        steps, losses = (np.concatenate(parts) for parts in zip(curve.train, curve.held_out, strict=True))
        steps, losses = steps[losses > high], losses[losses > high]
        if not len(steps):
            continue
        axes.plot(steps, np.full(len(steps), high), "^", color=colour, markersize=5, clip_on=False, linestyle="none")
        highest = int(np.argmax(losses))
        axes.annotate(
            f"{losses[highest]:.3g} at step {int(steps[highest]):,}", (steps[highest], high), fontsize=7, color=colour,
            xytext=(6, -9), textcoords="offset points",
        )  # fmt: skip


def _draw_rates(axes: Axes, curves: list[Curve]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for curve, colour in zip(curves, _colours(len(curves)), strict=True):
        marker = "o" if len(curve.rate[0]) < _SMOOTH_FROM else None
        axes.plot(*curve.rate, color="#525252" if len(curves) == 1 else colour, linewidth=1.2, marker=marker, markersize=2.5)
    axes.set_ylabel("learning\nrate", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_ylim(0, 1.1 * max(float(curve.rate[1].max()) for curve in curves if len(curve.rate[1])) or 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _rate_text(value)))
    axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))


def _rate_text(value: float) -> str:
    """2e-4 as people write it."""
    number, _, exponent = f"{value:.1e}".partition("e")
    return f"{number.removesuffix('.0')}e{int(exponent)}" if 0 < value < 0.1 else f"{value:g}"


def _set_steps(axes: Axes, curves: list[Curve]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    steps = np.concatenate([part[0] for curve in curves for part in (curve.train, curve.held_out)])
    first, last = float(steps.min()), float(steps.max())
    margin = max(0.02 * (last - first), 0.1 if last > first else 1.0)
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{int(value):,}"))


def _colours(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]
