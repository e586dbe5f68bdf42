"""sweep.json: what a search for a learning rate has measured so far. It holds no times, so that a search is the same twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files.atomic import write_json
from ..files.json_files import read_json_object

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
        path = folder / SWEEP_FILE
        if not path.exists():
            return None
        values = read_json_object(path, "remove it to begin anew")
        try:
            if values["format"] != _FORMAT:
                raise ValueError(values["format"])
            losses = {
                float(trial["learning_rate"]): {
                    int(one["steps"]): None if one["eval_loss"] is None else float(one["eval_loss"]) for one in trial["losses"]
                }
                for trial in values["trials"]
            }
            return cls(dict(values["run"]), list(values["rungs"]), losses, values["learning_rate"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            got = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{path}: expected what a sweep wrote, got {got}; remove it to begin anew") from None


def folder_name(rate: float) -> str:
    """The folder of a rate's run."""
    return f"lr-{rate:g}"
