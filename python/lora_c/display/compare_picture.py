"""Pictures of a comparison: the loss of each row, the losses over the steps, what each row costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .plot import picture

_ROW_HEIGHT, _MARGIN, _WIDTH = 0.26, 1.0, 5.0  # inches; narrow, so that a phone's width can be read
_WIDE_RANGE = 4.0  # of the largest loss by the smallest: beyond it the axis is logarithmic
_COLOUR, _SECOND, _BASE = "#2171b5", "#d94801", "#525252"


class Bar(NamedTuple):
    """A number of a row, and half of its interval; None where there is none."""

    value: float
    half: float | None = None


def draw_losses(rows: Mapping[str, Bar], base: float | None, path: Path) -> None:
    """Held-out loss of each row with its interval, that of the base as a line.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    SaveError
        The file cannot be written.
    """
    with picture(path, (_WIDTH, _MARGIN + _ROW_HEIGHT * len(rows))) as figure:
        axes = figure.add_subplot()
        _points(axes, rows)
        if base is not None and rows and base < 2 * max(bar.value for bar in rows.values()):
            axes.axvline(base, color=_BASE, linestyle="--", linewidth=1.0, label=f"base: {base:.4f}")
            axes.legend(frameon=False, fontsize="small")
        axes.set_xlabel("held-out loss, nats")


def draw_costs(costs: Mapping[str, Mapping[str, Bar]], path: Path) -> None:
    """A panel for each cost, a bar for each row.

    Parameters
    ----------
    costs : mapping
        Label of a panel to row to number.
    """
    names = list(dict.fromkeys(name for rows in costs.values() for name in rows))
    with picture(path, (_WIDTH, _MARGIN + _ROW_HEIGHT * len(names))) as figure:
        panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
        for axes, (label, rows) in zip(panels, costs.items(), strict=True):
            axes.barh(names, [rows[name].value if name in rows else 0.0 for name in names], color=_COLOUR, height=0.6)
            axes.set_xlabel(label)
            axes.grid(True, axis="x", linewidth=0.3)
            axes.locator_params(axis="x", nbins=3)
        panels[0].invert_yaxis()


def draw_curves(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Held-out loss and training loss over the steps, a small panel for each row: where they part, it learns by heart.

    Parameters
    ----------
    curves : mapping
        Row to records with "step", "eval_loss" and, but for the first, "train_loss".
    """
    columns = min(3, max(1, len(curves)))
    lines = -(-len(curves) // columns)
    with picture(path, (_WIDTH, 0.6 + 1.4 * lines)) as figure:
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for i, axes in enumerate(panels):
            if i >= len(curves):
                axes.set_axis_off()
                continue
            name, records = list(curves.items())[i]
            for key, colour, label in (("train_loss", _SECOND, "training"), ("eval_loss", _COLOUR, "held-out")):
                points = [(record["step"], record[key]) for record in records if key in record]
                if points:
                    axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, label=label)
            axes.set_title(name, fontsize="small")
            axes.grid(True, linewidth=0.3)
            if i == 0:
                axes.legend(frameon=False, fontsize="x-small")
        values = [record["eval_loss"] for records in curves.values() for record in records]
        if values and max(values) > _WIDE_RANGE * min(values) > 0:
            panels[0].set_yscale("log")
            for axes in panels:
                _plain_numbers(axes.yaxis)
        figure.supxlabel("step", fontsize="small")
        figure.supylabel("loss, nats", fontsize="small")


def _plain_numbers(axis: Any) -> None:
    """2 and 5 on a logarithmic axis, which would say 2 x 10^0."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _points(axes: Any, rows: Mapping[str, Bar]) -> None:
    names = list(rows)
    values = [bar.value for bar in rows.values()]
    halves = [bar.half or 0.0 for bar in rows.values()]
    axes.errorbar(values, names, xerr=halves, fmt="o", color=_COLOUR, markersize=5, capsize=3, linewidth=1.2)
    axes.invert_yaxis()
    axes.grid(True, linewidth=0.3)
