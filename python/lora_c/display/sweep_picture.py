"""sweep.png: held-out loss by learning rate, a line for each comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .plot import picture

_SIZE = (8.0, 5.0)  # inches
_COLOURS = ("#9ecae1", "#4292c6", "#08519c", "#08306b", "#041b3d")


def draw_sweep(losses: Mapping[float, Mapping[int, float | None]], chosen: float | None, path: Path) -> None:
    """Write the picture.

    Parameters
    ----------
    losses : mapping
        Rate to steps to loss; None: it diverged.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    SaveError
        The file cannot be written.
    """
    all_steps = sorted({steps for by_steps in losses.values() for steps in by_steps})
    with picture(path, _SIZE) as figure:
        axes = figure.add_subplot()
        for i, steps in enumerate(all_steps):
            points = [(rate, loss) for rate in sorted(losses) if (loss := losses[rate].get(steps)) is not None]
            if points:
                xs, ys = zip(*points, strict=True)
                colour = _COLOURS[min(i + max(0, 3 - len(all_steps)), len(_COLOURS) - 1)]
                axes.plot(xs, ys, marker="o", color=colour, label=f"after {steps:,} steps")
        if chosen is not None:
            axes.axvline(chosen, color="#d94801", linestyle="--", linewidth=1.0, label=f"chosen: {chosen:g}")
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("held-out loss")
        axes.grid(True, which="both", linewidth=0.3)
        axes.legend(frameon=False)
