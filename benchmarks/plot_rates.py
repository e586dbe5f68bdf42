"""Held-out loss by learning rate, a line for each rank: of `lora-c compare` with a file of rows that differ in rank and rate.

    python benchmarks/plot_rates.py PICTURE TITLE=FOLDER [TITLE=FOLDER ...]

Each folder is that of a comparison and becomes a panel; its rows "method: full" are drawn in every one. Prints the means, too.
"""

import json
import sys
from pathlib import Path

from lora_c.comparison.record import CompareRecord
from lora_c.display.plot import picture

Curves = dict[str, dict[float, float]]


def curves_of(folder: Path) -> Curves:
    """Rank, or "full", to rate to the mean loss over the seeds."""
    record = CompareRecord.read(folder)
    assert record is not None, f"{folder}: expected compare.json, got none"
    found: Curves = {}
    for row in record.rows.values():
        settings = row.settings["settings"]
        name = "full" if settings["method"] == "full" else f"rank {settings['r']}"
        if (mean := row.mean("results", "eval_loss")) is not None:
            found.setdefault(name, {})[float(settings["learning_rate"])] = mean.value
    return {name: dict(sorted(curve.items())) for name, curve in found.items()}


def main(path: Path, panels: dict[str, Curves]) -> None:
    """Draw the panels beside each other."""
    full = next((curves["full"] for curves in panels.values() if "full" in curves), None)
    with picture(path, (4.0 * len(panels), 3.6)) as figure:
        for axes, (title, curves) in zip(
            figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
        ):
            shown = {name: curve for name, curve in curves.items() if name != "full"} | ({"full": full} if full else {})
            for name, curve in shown.items():
                style = {"color": "#525252", "linestyle": "--"} if name == "full" else {}
                axes.plot(list(curve), list(curve.values()), marker="o", markersize=3, linewidth=1.2, label=name, **style)
            axes.set_xscale("log")
            axes.set_title(title, fontsize="small")
            axes.set_xlabel("learning rate")
            axes.grid(True, linewidth=0.3)
            axes.legend(frameon=False, fontsize="x-small")
        figure.axes[0].set_ylabel("held-out loss, nats")


if __name__ == "__main__":
    found = {title: curves_of(Path(folder)) for title, _, folder in (word.rpartition("=") for word in sys.argv[2:])}
    print(json.dumps(found, indent=1))
    main(Path(sys.argv[1]), found)
