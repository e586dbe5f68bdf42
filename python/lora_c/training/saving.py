"""The checkpoints of a run while it goes on: when one is written, which are kept, and what is done where none can be."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..checkpoints.safetensors_file import find_non_finite
from ..comm.communicator import is_main
from ..errors import DivergenceError, LoraCError, SaveError
from ..notices import tell
from ..runs.checkpoints import latest_checkpoint, prune_checkpoints
from .best import best_of
from .checkpoint_schedule import CheckpointSchedule, expected_seconds
from .optimizers import checkpoint_state_bytes
from .state import is_finite, save_checkpoint

if TYPE_CHECKING:
    from .trainer import Trainer


def check_finite(trainer: Trainer, done: int) -> None:
    """Refuse a state that could not be resumed from."""
    if not is_finite(trainer):
        what = "parameters" if any(find_non_finite(p.data) for p in trainer.parameters) else "moments"
        raise DivergenceError(f"expected finite {what} after step {done}, got NaN or infinity")


class Saving:
    """Writes the checkpoints of a trainer, which holds it and is given with every call: neither keeps the other alive.

    Attributes
    ----------
    keeps : bool
        Whether anything is written. A run whose folder goes when it ends, as those that are compared have, writes nothing, and
        nobody is told of a checkpoint.
    unsaved : list of str
        The checkpoints that could not be written since the last one that was, each with the reason.
    """

    def __init__(self) -> None:
        self.keeps = True
        self._last: int | None = None
        self.unsaved: list[str] = []

    def begin(self, trainer: Trainer) -> None:
        """Start anew, for a call of `train`."""
        seconds = expected_seconds(_bytes_of(trainer))
        self._schedule = CheckpointSchedule(trainer.config.save_steps, trainer.total_steps, seconds)
        self._last = None

    def save_if_due(self, trainer: Trainer, done: int) -> None:
        """Write the checkpoint of a step where the schedule has one; the last one is left to `save_last`."""
        if is_main(trainer.comm) and done < trainer.total_steps and self._schedule.is_due(done):
            check_finite(trainer, done)
            self._save(trainer, done)

    def save_last(self, trainer: Trainer, done: int) -> None:
        """Write the checkpoint that a run ends with, unless it is there already."""
        if self._last != done:
            self._save(trainer, done, is_last=True)

    def save_best(self, trainer: Trainer, done: int) -> None:
        """Write the checkpoint of the best evaluation so far, unless it is there already."""
        if done not in trainer.checkpoints:
            check_finite(trainer, done)
            self._save(trainer, done)

    def divergence(self, trainer: Trainer, error: DivergenceError, done: int) -> DivergenceError:
        """Return the error with the way out, after the last finite state has been saved."""
        if done and done not in trainer.checkpoints and is_finite(trainer):
            self._save(trainer, done)
        last = latest_checkpoint(trainer.output_dir) if trainer.checkpoints else None
        state = f"the last finite state is in {last}" if last else "no finite state but the model's own is left"
        return DivergenceError(f"training: {error}; {state}; start again with a smaller learning rate or a longer warm-up")

    def _save(self, trainer: Trainer, done: int, is_last: bool = False) -> None:
        """A checkpoint that cannot be written does not end the run of one process: its result is still to come, and it is
        tried again. It ends one of several: nobody keeps a cluster busy with what is lost when a rank fails."""
        if not self.keeps:
            return
        if not is_main(trainer.comm):
            self._last = done
            trainer.checkpoints = [*(step for step in trainer.checkpoints if step != done), done]
            return
        try:
            trainer.run()  # the digests are made once, and do not count as its time
            started = time.perf_counter()
            with trainer.leaving.during("saving"):
                save_checkpoint(trainer, done)
        except (LoraCError, MemoryError) as error:
            if trainer.comm.size > 1:
                raise SaveError(f"no checkpoint of step {done}: {error}") from None
            self._schedule.failed()
            self.unsaved.append(f"step {done}: {error}")
            tell(f"no checkpoint of step {done}: {error}")
            return
        self._last = done
        self.unsaved.clear()
        self._schedule.written(time.perf_counter() - started)
        limit = trainer.config.save_total_limit
        limit = max(limit, 2) if limit and is_last else limit  # the state before the last one stays beside it
        trainer.checkpoints = prune_checkpoints(
            trainer.output_dir, trainer.run_id, trainer.checkpoints, limit, self._spared(trainer)
        )
        trainer.callbacks.report(trainer, "on_save", done)

    def _spared(self, trainer: Trainer) -> int | None:
        """The step of the best evaluation, where the run is to end with its parameters."""
        best = best_of(trainer.config, trainer.history) if trainer.config.load_best_model_at_end else None
        return None if best is None else best.step


def _bytes_of(trainer: Trainer) -> int:
    """Of a checkpoint: parameters and the optimizer's state, and the parameters again in the adapter's format."""
    return checkpoint_state_bytes(trainer.config, trainer.parameters) + 2 * 4 * sum(p.size for p in trainer.parameters)
