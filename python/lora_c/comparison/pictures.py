"""The pictures of a comparison, from what was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..display.compare_picture import Bar, draw_costs, draw_curves, draw_losses
from .record import CompareRecord

_COSTS = {
    "memory, MiB": (("costs", "peak_rss_bytes"), 2.0**-20),
    "tokens/s": (("costs", "tokens_per_second"), 1.0),
    "saved, KiB": (("results", "checkpoint_bytes"), 2.0**-10),
}


def draw_pictures(record: CompareRecord, folder: Path) -> dict[str, str]:
    """Write the pictures of what there is to see and return their names, with what each shows.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    SaveError
        A file cannot be written.
    """
    found: dict[str, str] = {}

    def written(name: str, text: str, draw: Callable[[Path], None]) -> None:
        draw(folder / name)
        found[name] = text

    losses = bars_of(record, ("results", "eval_loss"))
    if not losses:
        return {}
    seeds = max(len(row.runs) for row in record.rows.values())
    base = record.base.get("results", {}).get("eval_loss")
    written(
        "losses.png",
        "Held-out loss of each row" + (", with its 95 % interval over the seeds." if seeds > 1 else "."),
        lambda p: draw_losses(losses, base, p),
    )
    curves = {name: curve for name, row in record.rows.items() if (curve := _curve(list(row.runs.values())))}
    if curves:
        text = "Held-out and training loss over the steps, of the first seed: where they part, a row learns by heart."
        written("curves.png", text, lambda p: draw_curves(curves, p))
    costs = {label: bars for label, (path, scale) in _COSTS.items() if (bars := bars_of(record, path, scale))}
    if costs:
        written("costs.png", "Memory, speed, and what is saved of each row.", lambda p: draw_costs(costs, p))
    return found


def bars_of(record: CompareRecord, path: tuple[str, ...], scale: float = 1.0) -> dict[str, Bar]:
    """The means of a number by row, of the rows that have it."""
    found = {name: row.mean(*path) for name, row in record.rows.items()}
    return {
        name: Bar(mean.value * scale, None if mean.half is None else mean.half * scale)
        for name, mean in found.items()
        if mean is not None
    }


def _curve(runs: list[dict[str, dict[str, list[dict[str, float]]]]]) -> list[dict[str, float]]:
    return next((curve for run in runs if (curve := run.get("results", {}).get("curve"))), [])
