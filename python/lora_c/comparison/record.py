"""compare.json: what a comparison has measured, row by row, and what the seeds of a row are together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files.atomic import write_json
from ..runs.kept_record import read_kept
from .intervals import Mean, mean_of

COMPARE_FILE = "compare.json"
_FORMAT = 1


@dataclass
class RowRecord:
    """A row, and what its runs have brought by seed.

    Attributes
    ----------
    title, settings : str, dict
        What it is, and what it changes.
    runs : dict
        Seed to "results" and "costs", or to "refused".
    failed : str
        How a process of it has ended without a result; it is tried again.
    """

    title: str
    settings: dict[str, Any]
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)
    failed: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RowRecord:
        """The row that `as_dict` wrote."""
        runs = {int(run["seed"]): {key: value for key, value in run.items() if key != "seed"} for run in values["runs"]}
        return cls(str(values["title"]), dict(values["settings"]), runs)

    def by_seed(self, *path: str) -> dict[int, float]:
        """A number of each run that has it, by its seed."""
        found = {seed: _at(run, path) for seed, run in sorted(self.runs.items())}
        return {seed: value for seed, value in found.items() if value is not None}

    def mean(self, *path: str) -> Mean | None:
        """The mean over the seeds of a number, by its place ("results", "eval_loss"); None where no run has it."""
        values = self.by_seed(*path)
        return mean_of(list(values.values())) if values else None

    @property
    def problem(self) -> str:
        """Why it has no numbers: refused, diverged or failed; else empty."""
        found: list[Callable[[dict[str, Any]], Any]] = [
            lambda run: run.get("refused"), lambda run: run.get("results", {}).get("diverged"),
        ]  # fmt: skip
        said = next((text for run in self.runs.values() for ask in found if (text := ask(run))), "")
        return said or ("" if self.mean("results", "eval_loss") else self.failed)

    def as_dict(self, name: str) -> dict[str, Any]:
        """For compare.json and programs."""
        runs = [{"seed": seed, **run} for seed, run in sorted(self.runs.items())]
        return {"name": name, "title": self.title, "settings": self.settings, "problem": self.problem or None, "runs": runs}


@dataclass
class CompareRecord:
    """A comparison.

    Attributes
    ----------
    run : dict
        Options and digests that all rows share.
    base : dict
        "results" and "costs" of the base.
    rows : dict
        Name to what was measured, in the order of the table.
    loading : dict
        Seconds by the type of the file.
    advice : str
        One sentence that follows from the rows.
    """

    run: dict[str, Any]
    base: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, RowRecord] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For compare.json and programs."""
        rows = [row.as_dict(name) for name, row in self.rows.items()]
        return {
            "format": _FORMAT, "advice": self.advice, "base": self.base, "rows": rows, "loading": self.loading,
            "run": self.run,
        }  # fmt: skip

    def write(self, folder: Path) -> None:
        """Replace the file in one step.

        Raises
        ------
        SaveError
            It cannot be written.
        """
        write_json(folder / COMPARE_FILE, self.as_dict())

    @classmethod
    def read(cls, folder: Path) -> CompareRecord | None:
        """What a comparison before has left in a folder; None: nothing.

        Raises
        ------
        CheckpointError
            The file is damaged.
        """
        return read_kept(folder / COMPARE_FILE, "a comparison", _FORMAT, cls._of)

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> CompareRecord:
        rows = {str(row["name"]): RowRecord.of(row) for row in values["rows"]}
        return cls(dict(values["run"]), dict(values["base"]), rows, dict(values["loading"]), str(values["advice"]))


def _at(values: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    found: Any = values
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, (int, float)) else None
