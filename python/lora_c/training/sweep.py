"""A search for the learning rate: a run for each of some rates, of which the better ones go on (`halving.py`).

Each trial is a run in a folder of its own, whose schedule is that of the whole length; it stops at a rung with a checkpoint,
and goes on from there. What was measured is in sweep.json, so a search that was stopped goes on where it was, with the same
bits.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, DivergenceError
from ..runs.sweep_record import SWEEP_FILE, SweepRecord, folder_name
from .callbacks import Callback, TrainerState
from .halving import best_of, rungs
from .trials import changed, refuse_others, shared_by_trials, train_to

if TYPE_CHECKING:
    from .trainer import Trainer

MakeTrial = Callable[[float, Path, Callback], "Trainer"]  # of a rate, in a folder, with a callback
Report = Callable[[float, int, "float | None"], None]  # rate, steps, held-out loss


class StopAt(Callback):
    """Ends a run after a step, with a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, state: TrainerState) -> None:
        """Ask the run to stop where it is due."""
        if state.step >= self.step < state.total_steps:
            state.stop()


def sweep(
    make: MakeTrial,
    rates: Sequence[float],
    folder: Path,
    *,
    factor: int = 3,
    overwrite: bool = False,
    report: Report = lambda rate, steps, loss: None,
) -> SweepRecord:
    """Search, or go on with a search in the folder, and return what was found.

    Parameters
    ----------
    make : callable
        Makes the trainer of a rate, with held-out data.
    rates : sequence of float
        To try, each once.
    factor : int
        Of so many trials one goes on.
    overwrite : bool
        Take the place of another search in the folder.
    report : callable
        Told of every measurement, also of those that were made before.

    Raises
    ------
    ConfigError
        The folder holds another search, the runs are too short, or there is no held-out data.
    DivergenceError
        Every trial diverged.
    """
    left, stop = sorted(rates), StopAt(1)
    first: Trainer | None = make(left[0], folder / folder_name(left[0]), stop)
    assert first is not None
    if first.eval_data is None:
        raise ConfigError(
            "eval_data: expected held-out data, by which rates are compared, got none; give --eval-data or --val-fraction"
        )
    ladder = rungs(len(rates), first.total_steps, factor)
    record = SweepRecord(
        shared_by_trials(first, ("learning_rate",)), [{"steps": rung.steps, "trials": rung.trials} for rung in ladder]
    )
    record.losses = {rate: {} for rate in rates}
    record = _begun(record, folder, overwrite)
    stop.step = ladder[0].steps
    for i, rung in enumerate(ladder):
        for rate in left:
            trial, first = first, None  # it is the first trial's; nothing else may hold its base while another one is loaded
            if rung.steps not in record.losses[rate]:
                place = folder / folder_name(rate)
                trial = trial or make(rate, place, StopAt(rung.steps))
                record.losses[rate][rung.steps] = _loss_of(trial, place, rung.steps)
                record.write(folder)
            del trial
            report(rate, rung.steps, record.losses[rate][rung.steps])
        left = _best(record, left, rung.steps, ladder[i + 1].trials if i + 1 < len(ladder) else 1)
    record.chosen = left[0]
    record.write(folder)
    return record


def _best(record: SweepRecord, rates: list[float], steps: int, n: int) -> list[float]:
    found = {rate: record.losses[rate][steps] for rate in rates}
    if all(loss is None for loss in found.values()):
        raise DivergenceError(f"sweep: expected a rate that trains, got {len(found)} runs that diverged; give lower rates")
    return best_of(found, n)


def _begun(record: SweepRecord, folder: Path, overwrite: bool) -> SweepRecord:
    """The record to go on with: the one in the folder where it is of the same search, else the new one."""
    before = SweepRecord.read(folder)
    if before is not None and not overwrite:
        refuse_others("sweep", folder / SWEEP_FILE, _changes(before, record))
        return before
    for rate in record.losses if before is None else {*before.losses, *record.losses}:
        trial = folder / folder_name(rate)
        if overwrite and trial.is_dir():
            shutil.rmtree(trial)
    folder.mkdir(parents=True, exist_ok=True)
    record.write(folder)
    return record


def _changes(before: SweepRecord, now: SweepRecord) -> list[str]:
    names = changed(before.run, now.run) + (["rates"] if sorted(before.losses) != sorted(now.losses) else [])
    return names + (["factor or number of steps"] if before.rungs != now.rungs else [])


def _loss_of(trainer: Trainer, folder: Path, steps: int) -> float | None:
    """The held-out loss of a trial after some steps, of which it may have done some before; None: it diverged."""
    try:
        train_to(trainer, folder, steps)
        loss = trainer.evaluate()
    except DivergenceError:
        return None
    return loss if math.isfinite(loss) else None
