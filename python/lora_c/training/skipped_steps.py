"""Steps whose numbers are not fit for an update: left out and counted, or the end of the run. What made them is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..data.batching import PackedBatch
from ..errors import DivergenceError, LoraCError
from ..notices import tell
from ..runs.bad_steps import BadStep, bad_step_folder, write_bad_step

if TYPE_CHECKING:
    from ..display.progress import Progress
    from .trainer import Trainer

_KEPT = 3  # of a run: each holds the trained parameters


def count_skipped(history: Iterable[Mapping[str, Any]]) -> int:
    """Return how many steps of a history changed nothing."""
    return sum("skipped" in record for record in history)


def skip_or_end(
    trainer: Trainer, step: int, batches: Sequence[PackedBatch], loss: float, problem: str, progress: Progress
) -> None:
    """Keep what a step was made of, and end the run unless such steps are to be left out.

    Raises
    ------
    DivergenceError
        They are not, or there have been too many.
    """
    config = trainer.config
    before = count_skipped(trainer.history)
    kept = _keep(trainer, step, batches, loss, problem) if before < _KEPT else ""
    is_finite = problem.startswith("expected a gradient norm of at most")
    if config.nonfinite_steps == "stop" and not is_finite:
        raise DivergenceError(problem + kept)
    if before >= config.max_skipped_steps:
        raise DivergenceError(f"expected at most {config.max_skipped_steps} steps left out, got one more: {problem}{kept}")
    progress.message(f"step {step + 1} is left out: {problem}{kept}")


def _keep(trainer: Trainer, step: int, batches: Sequence[PackedBatch], loss: float, problem: str) -> str:
    """Write the step aside, and say where; a disk that is full ends nothing."""
    folder = bad_step_folder(trainer.output_dir, step + 1)
    try:
        write_bad_step(folder, BadStep.of(trainer, step, batches, loss, problem))
    except (LoraCError, MemoryError) as error:
        tell(f"step {step + 1}: not kept for a replay: {error}")
        return ""
    return f" (kept in {folder}: lora-c replay {folder})"
