"""numerics.png: the losses of the same training in each precision, how they differ from exact ones, gradients by module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .plot import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = (11.0, 7.0)  # inches
_COLOURS = {"exact": "#525252", "fast": "#2171b5", "int8": "#d94801"}
_BAND, _LIMIT = "#bdbdbd", "#a50f15"
_POINTS = 25  # windows that a curve is made of, so that the noise of single batches does not hide what lies below it


def draw_numerics(found: Mapping[str, Any], path: Path, title: str) -> None:
    """Write the picture.

    Parameters
    ----------
    found : mapping
        What `NumericsRecord.as_dict` returns.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    SaveError
        The file cannot be written.
    """
    precisions = found["precisions"]
    others = [name for name in precisions if name != "exact"]
    with picture(path, _SIZE) as figure:
        from matplotlib.ticker import MaxNLocator

        (curves, held_out), (differences, gradients) = figure.subplots(2, 2, width_ratios=(3, 2))
        _draw_curves(curves, precisions)
        _draw_differences(differences, precisions, others)
        _draw_held_out(held_out, found, others)
        _draw_gradients(gradients, precisions, others, found["least_cosine"])
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        for axes in (curves, differences, held_out, gradients):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y" if axes in (curves, differences) else "x", alpha=0.25)
            axes.tick_params(labelsize=8)
        for axes in (curves, differences):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))


def smooth(losses: Sequence[Sequence[float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(steps, mean losses) of every seed, (seeds, windows): the mean of each window at its middle.

    Runs that ended before the others are as long as the shortest.
    """
    length = min(map(len, losses))
    edges = np.unique(np.linspace(0, length, min(length, _POINTS) + 1).round().astype(int))
    sums = np.cumsum(np.concatenate([np.zeros((len(losses), 1)), [run[:length] for run in losses]], axis=1), axis=1)
    return (edges[:-1] + 1 + edges[1:]) / 2, np.diff(sums[:, edges], axis=1) / np.diff(edges)


def _draw_curves(axes: Axes, precisions: Mapping[str, Any]) -> None:
    for i, (name, values) in enumerate(precisions.items()):
        steps, losses = smooth(values["losses"])
        if name == "exact" and len(losses) > 1:
            axes.fill_between(
                steps, losses.min(axis=0), losses.max(axis=0), color=_BAND, alpha=0.5, linewidth=0, label="seeds of exact"
            )
        # The first one is wide and each one above it thinner, so that curves that lie on each other can all be seen.
        axes.plot(
            steps, losses.mean(axis=0), color=_COLOURS[name], linewidth=4.5 - 1.6 * i, label=name, solid_capstyle="round"
        )
    axes.set_ylabel("training loss, nats per token", fontsize=9)
    axes.set_title("the same steps in each precision", loc="left", fontsize=9)
    axes.legend(frameon=False, fontsize=8)


def _draw_differences(axes: Axes, precisions: Mapping[str, Any], others: Sequence[str]) -> None:
    steps, exact = smooth(precisions["exact"]["losses"])
    if len(exact) > 1:
        band = exact.std(axis=0, ddof=1)
        axes.fill_between(steps, -band, band, color=_BAND, alpha=0.5, linewidth=0, label="spread between seeds")
    axes.axhline(0.0, color=_COLOURS["exact"], linewidth=1.0)
    for name in others:
        ends, losses = smooth(precisions[name]["losses"])
        if len(ends) == len(steps):  # else it diverged
            for i, run in enumerate(losses - exact):
                axes.plot(steps, run, color=_COLOURS[name], linewidth=1.1, alpha=0.85, label=name if i == 0 else None)
    axes.set_xlabel("optimizer step", fontsize=9)
    axes.set_ylabel("loss less that of exact, same seed", fontsize=9)
    axes.legend(frameon=False, fontsize=8)


def _draw_held_out(axes: Axes, found: Mapping[str, Any], others: Sequence[str]) -> None:
    precisions, spread = found["precisions"], found["spread"]
    if spread is not None:
        axes.axvspan(-spread, spread, color=_BAND, alpha=0.5, linewidth=0)
        axes.text(spread, len(others) - 0.5, " spread\n between seeds", fontsize=7, va="top", color="#525252")
    axes.axvline(0.0, color=_COLOURS["exact"], linewidth=1.0)
    for i, name in enumerate(others):
        differences = precisions[name]["differences"]
        if differences is None:
            axes.text(0.0, i, f" {name} diverged", fontsize=8, va="center", color=_COLOURS[name])
        else:
            axes.plot(differences, np.full(len(differences), i), "o", color=_COLOURS[name], markersize=6, alpha=0.8)
    axes.set_yticks(range(len(others)), others)
    axes.set_ylim(-0.6, len(others) - 0.4)
    low, high = axes.get_xlim()
    reach = 1.25 * max(abs(low), abs(high))
    axes.set_xlim(-reach, reach)
    axes.set_title("held-out loss at the end, less that of exact", loc="left", fontsize=9)


def _draw_gradients(axes: Axes, precisions: Mapping[str, Any], others: Sequence[str], fine: float) -> None:
    cosines = {name: precisions[name]["cosine"]["modules"] for name in others if "cosine" in precisions[name]}
    modules = list(dict.fromkeys(module for found in cosines.values() for module in found))
    lowest = fine
    for i, (name, found) in enumerate(cosines.items()):
        places = [modules.index(module) + 0.18 * (i - (len(cosines) - 1) / 2) for module in found]
        means, least = ([values[key] for values in found.values()] for key in ("mean", "least"))
        axes.hlines(places, least, means, color=_COLOURS[name], linewidth=2.0)
        axes.plot(means, places, "o", color=_COLOURS[name], markersize=5, label=name)
        lowest = min(lowest, *least)
    axes.axvline(fine, color=_LIMIT, linestyle="--", linewidth=0.9)
    axes.text(fine, -0.45, f" {fine:g}: below it,\n named as worse", fontsize=7, va="top", color=_LIMIT)
    axes.set_yticks(range(len(modules)), modules)
    axes.invert_yaxis()
    axes.set_xlim(max(-1.0, lowest - 0.1 * (1 - lowest)), 1.0 + 0.03 * (1 - lowest))
    axes.set_xlabel("cosine with the exact ones: mean (dot), least (end of the line)", fontsize=8)
    axes.set_title("gradients of the next step", loc="left", fontsize=9)
    if cosines:
        axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.0)
