"""Runs that are compared: what they share, how one goes on where it was stopped, and that a folder holds one set of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError, SaveError, shorten
from ..runs.digests import data_digest

if TYPE_CHECKING:
    from .trainer import Trainer


def shared_by_trials(trainer: Trainer, own: tuple[str, ...]) -> dict[str, Any]:
    """What decides the result of all trials alike; own: the options in which they differ."""
    run = trainer.run()
    options = {name: value for name, value in run.options.items() if name not in own}
    held_out = "" if trainer.eval_data is None else data_digest(trainer.eval_data)
    return {**options, "data (digest)": run.data, "held-out data (digest)": held_out, "model (digest)": run.model}


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of what is not the same."""
    return [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]


def refuse_others(what: str, file: Path, changes: list[str]) -> None:
    """Refuse a folder with trials that were made otherwise.

    Raises
    ------
    ConfigError
        There are changes.
    """
    if changes:
        raise ConfigError(
            f"output_dir: expected a free folder or one of this {what}, got {str(file)!r} of another one "
            f"({shorten(changes, 4)}); choose another folder, or give --overwrite"
        )


def train_to(trainer: Trainer, folder: Path, steps: int) -> int:
    """Train until a step, from the last checkpoint in the folder, and return the step that it went on from.

    Raises
    ------
    CheckpointError
        The folder holds a run that is beyond it.
    SaveError
        The state could not be saved.
    DivergenceError
        A loss is not finite.
    """
    done = trainer.resume_from("auto")
    if done > steps:
        raise CheckpointError(
            f"{folder}: expected a run of {steps} steps at most, got a checkpoint of step {done}; remove the folder"
        )
    if done < steps:
        result = trainer.train()
        if result.unsaved:
            raise SaveError(f"{folder}: expected a checkpoint, got none: {'; '.join(map(str, result.unsaved))}")
    return done
