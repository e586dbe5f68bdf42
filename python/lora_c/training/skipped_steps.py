"""Steps whose numbers are not fit for an update: left out and counted, or the end of the run. What made them is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..comm.communicator import is_main
from ..data.batching import pack_group
from ..errors import DivergenceError, LoraCError
from ..notices import tell
from ..runs.bad_steps import StepRecord, bad_step_folder, kept_parameters, write_bad_step

if TYPE_CHECKING:
    from ..display.progress import Progress
    from .trainer import Trainer

_KEPT = 3  # of a run: each holds the trained parameters


@dataclass(frozen=True)
class Unfit:
    """Why a step is not fit for an update.

    Attributes
    ----------
    text : str
        What was expected of it, and what it came to.
    is_finite : bool
        Whether its numbers are finite, and only larger than they may be.
    """

    text: str
    is_finite: bool


def count_skipped(history: Iterable[Mapping[str, Any]]) -> int:
    """Return how many steps of a history changed nothing."""
    return sum("skipped" in record for record in history)


def skip_or_end(
    trainer: Trainer, step: int, groups: Sequence[NDArray[np.int64]], loss: float, problem: Unfit, progress: Progress
) -> None:
    """Keep what a step was made of, and end the run unless such steps are to be left out.

    Raises
    ------
    DivergenceError
        They are not, or there have been too many.
    """
    config = trainer.config
    before = count_skipped(trainer.history)
    keeps = trainer.saving.keeps and before < _KEPT and is_main(trainer.comm)
    kept = _keep(trainer, step, groups, loss, problem.text) if keeps else ""
    if config.nonfinite_steps == "stop" and not problem.is_finite:
        raise DivergenceError(problem.text + kept)
    if before >= config.max_skipped_steps:
        most = f"expected at most {config.max_skipped_steps} steps left out, got one more"
        raise DivergenceError(f"{most}: {problem.text}{kept}")
    progress.message(f"step {step + 1} is left out: {problem.text}{kept}")


def _keep(trainer: Trainer, step: int, groups: Sequence[NDArray[np.int64]], loss: float, problem: str) -> str:
    """Write the step aside, and say where; a disk that is full ends nothing."""
    folder = bad_step_folder(trainer.output_dir, step + 1)
    try:
        record = StepRecord.of(trainer, step, loss, problem)
        batches = [pack_group(trainer.train_data, group) for group in groups]
        write_bad_step(folder, record, batches, kept_parameters(trainer.model).values())
    except (LoraCError, MemoryError) as error:
        tell(f"step {step + 1}: not kept for a replay: {error}")
        return ""
    return f" (kept in {folder}: lora-c replay {folder})"
