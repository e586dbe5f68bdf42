"""sweep.json: what a search for a learning rate has measured so far. It holds no times, so that a search is the same twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files.atomic import write_json
from .kept_record import read_kept

SWEEP_FILE = "sweep.json"
_FORMAT = 1


@dataclass
class SweepRecord:
    """What decides the result of a search, and the held-out losses by rate and steps; None: that trial diverged.

    Attributes
    ----------
    run : dict
        Options and digests that all trials share.
    rungs : list of dict
        "steps" and "trials" of each comparison.
    losses : dict
        Rate to steps to loss.
    chosen : float or None
        The rate, when the search is done.
    """

    run: dict[str, Any]
    rungs: list[dict[str, int]]
    losses: dict[float, dict[int, float | None]] = field(default_factory=dict)
    chosen: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For sweep.json and programs."""
        trials = [
            {
                "learning_rate": rate,
                "folder": folder_name(rate),
                "losses": [{"steps": steps, "eval_loss": loss} for steps, loss in sorted(by_steps.items())],
            }
            for rate, by_steps in sorted(self.losses.items())
        ]
        return {"format": _FORMAT, "learning_rate": self.chosen, "rungs": self.rungs, "trials": trials, "run": self.run}

    def write(self, folder: Path) -> None:
        """Replace the file in one step.

        Raises
        ------
        SaveError
            It cannot be written.
        """
        write_json(folder / SWEEP_FILE, self.as_dict())

    @classmethod
    def read(cls, folder: Path) -> SweepRecord | None:
        """What a search before has left in a folder; None: nothing.

        Raises
        ------
        CheckpointError
            The file is damaged.
        """
        return read_kept(folder / SWEEP_FILE, "a sweep", _FORMAT, cls._of)

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> SweepRecord:
        losses = {
            float(trial["learning_rate"]): {
                int(one["steps"]): None if one["eval_loss"] is None else float(one["eval_loss"]) for one in trial["losses"]
            }
            for trial in values["trials"]
        }
        return cls(dict(values["run"]), list(values["rungs"]), losses, values["learning_rate"])


def folder_name(rate: float) -> str:
    """The folder of a rate's run."""
    return f"lr-{rate:g}"
