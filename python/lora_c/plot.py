"""loss.png: the training loss, its running mean and the held-out loss over the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import atomic_file
from .notices import tell
from .os_errors import reason


def plot_losses(history: list[dict[str, Any]], path: Path, title: str = "") -> bool:
    """Write the plot; False when matplotlib is not installed (``pip install lora-c[plot]``), or fails, which is told."""
    try:
        return _draw(history, path, title)
    except Exception as error:  # a picture of a run is no reason to lose the run
        tell(f"{path}: not drawn ({reason(error)})")
        return False


def _draw(history: list[dict[str, Any]], path: Path, title: str) -> bool:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return False
    train = [(r["step"], r["loss"]) for r in history if "loss" in r]
    held_out = [(r["step"], r["eval_loss"]) for r in history if "eval_loss" in r]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="#9ecae1", linewidth=0.8, label="training, per step")
        axes.plot(steps, running_mean(losses, max(1, len(losses) // 25)), color="#2171b5", linewidth=1.8, label="running mean")
    if held_out:
        steps, losses = zip(*held_out, strict=True)
        axes.plot(steps, losses, color="#d94801", marker="o", markersize=4, linewidth=1.4, label="held out")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("cross entropy per token (nats)")
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    if train or held_out:
        axes.legend(frameon=False)
    with atomic_file(path) as file:
        figure.savefig(file, dpi=120, format="png")
    return True


def running_mean(values: Any, window: int) -> list[float]:
    """Mean of the last ``window`` values at every position."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value
        if i >= window:
            total -= values[i - window]
        means.append(total / min(i + 1, window))
    return means
