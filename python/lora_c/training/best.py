"""The best evaluation of a run: which it is, when there has been none for too long, and how a run ends with it.

The rules are those of transformers' EarlyStoppingCallback and load_best_model_at_end. All of it follows from the history, so
that a resumed run judges as one that was never stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..comm.communicator import is_main
from ..configs import TrainConfig
from ..errors import CheckpointError, ConfigError, LoraCError
from ..files.atomic import atomic_folder
from ..files.os_errors import reason
from ..notices import tell
from ..runs.checkpoints import Position, checkpoint_folder, read_position
from ..runs.history import was_evaluated
from .state import load_parameters

if TYPE_CHECKING:
    from ..display.progress import Progress
    from ..model.model import Model
    from .trainer import Trainer

_PREFIX = "eval_"


@dataclass(frozen=True)
class Best:
    """The best evaluation so far.

    Attributes
    ----------
    metric : str
        The name of what is judged, as records have it ("eval_loss").
    step : int
        The optimizer steps done before it.
    value : float
        What it was.
    since : int
        Evaluations in a row after it that were not better by more than the threshold.
    """

    metric: str
    step: int
    value: float
    since: int

    def as_dict(self) -> dict[str, Any]:
        """What a record of the run and `--json` say of it."""
        return {"metric": self.metric, "step": self.step, "value": self.value}


def metric_name(config: TrainConfig) -> str:
    """Return the name of the judged metric in records."""
    name = config.metric_for_best_model or "loss"
    return name if name.startswith(_PREFIX) else _PREFIX + name


def greater_is_better(config: TrainConfig) -> bool:
    """Return whether more is better, said or by the name of the metric."""
    said = config.greater_is_better
    return said if said is not None else not metric_name(config).endswith("loss")


def check_metric(config: TrainConfig, model: Model) -> None:
    """Refuse a metric that no evaluation of the model has.

    Raises
    ------
    ConfigError
        A language model is judged by its loss alone.
    """
    if model.labels is None and config.metric_for_best_model not in (None, "loss", "eval_loss"):
        raise ConfigError(
            f"metric_for_best_model: expected loss, which is all that a language model is measured by, got "
            f"{config.metric_for_best_model!r}"
        )


def best_of(config: TrainConfig, history: Iterable[Mapping[str, Any]]) -> Best | None:
    """Return the best evaluation of a history; None: there was none.

    Raises
    ------
    ConfigError
        Evaluations do not have the metric that is named.
    """
    metric, sign = metric_name(config), 1.0 if greater_is_better(config) else -1.0
    best: Best | None = None
    for record in history:
        if "eval_loss" not in record or record["step"] == 0:  # before the first step nothing was trained
            continue
        if metric not in record:
            known = ", ".join(name.removeprefix(_PREFIX) for name in record if name.startswith(_PREFIX))
            raise ConfigError(
                f"metric_for_best_model: expected a metric of the evaluation ({known}), got {config.metric_for_best_model!r}"
            )
        value = record[metric]
        if best is None:
            best = Best(metric, record["step"], value, 0)
            continue
        gain = sign * (value - best.value)
        since = 0 if gain > config.early_stopping_threshold else best.since + 1
        best = Best(metric, record["step"], value, since) if gain > 0 else Best(metric, best.step, best.value, since)
    return best


def is_early_end(trainer: Trainer, done: int) -> bool:
    """Whether as many evaluations in a row as the patience were no better, asked after each of them."""
    patience = trainer.config.early_stopping_patience
    if not patience or not was_evaluated(trainer.history, done):
        return False
    best = best_of(trainer.config, trainer.history)
    return best is not None and best.since >= patience


def keep_if_best(trainer: Trainer, done: int) -> None:
    """Write the checkpoint of an evaluation that is the best so far, where the run is to end with it."""
    if not trainer.config.load_best_model_at_end or not was_evaluated(trainer.history, done):
        return
    best = best_of(trainer.config, trainer.history)
    if best is not None and best.step == done:
        trainer.saving.save_best(trainer, done)


def begin_best(trainer: Trainer, done: int) -> None:
    """Have the checkpoint of the best evaluation so far in the output folder, the one before the first step included."""
    if is_main(trainer.comm):
        _bring_best(trainer, done)
    keep_if_best(trainer, done)


def _bring_best(trainer: Trainer, done: int) -> None:
    """Copy the checkpoint of the best evaluation into the output folder, where a run goes on in another one than before."""
    best = best_of(trainer.config, trainer.history) if trainer.config.load_best_model_at_end else None
    if trainer.came_from is None or best is None or best.step == done or best.step in trainer.checkpoints:
        return
    source, target = (checkpoint_folder(place, best.step) for place in (trainer.came_from, trainer.output_dir))
    try:
        _position_of(trainer, source)
        with atomic_folder(target) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
    except (LoraCError, OSError) as error:
        tell(f"load_best_model_at_end: the best evaluation so far is not taken along: {reason(error)}")
        return
    trainer.checkpoints.insert(0, best.step)


def _position_of(trainer: Trainer, folder: Path) -> Position:
    """Read a checkpoint of this run: another one may have left a folder of the same name."""
    position = read_position(folder)
    if position.run_id != trainer.run_id:
        raise CheckpointError(f"{folder}: expected a checkpoint of this run, got one of another")
    return position


def tell_end(trainer: Trainer, done: int, interrupted: bool, progress: Progress) -> None:
    """Say why a run ends before its last step."""
    if interrupted:
        what = "saving a checkpoint to resume from" if trainer.saving.keeps else "nothing of this run is kept"
        progress.message(f"stopped at step {done}; {what}")
    elif done < trainer.total_steps:
        best = best_of(trainer.config, trainer.history)
        assert best is not None  # it is judged by the evaluations after it
        times = "one evaluation" if best.since == 1 else f"{best.since} evaluations in a row"
        progress.message(
            f"ended after step {done} of {trainer.total_steps}: {times} without the gain that early_stopping_patience waits "
            f"for; the best {best.metric} is {best.value:.4f} after step {best.step}"
        )


def take_best(trainer: Trainer, done: int) -> tuple[Best | None, bool]:
    """Give the model the parameters of the best evaluation, where the run is to end with them.

    Returns
    -------
    best : Best or None
        That evaluation; None where the run does not look for it.
    is_here : bool
        Whether its parameters are now the model's.
    """
    best = best_of(trainer.config, trainer.history) if trainer.config.wants_best else None
    if best is None or best.step == done or not trainer.config.load_best_model_at_end:
        return best, best is not None and best.step == done
    trainer.comm.barrier()  # rank 0 has written it
    try:
        load_parameters(trainer, _position_of(trainer, checkpoint_folder(trainer.output_dir, best.step)))
    except CheckpointError as error:
        tell(f"load_best_model_at_end: the model keeps its last state, the best one cannot be read: {error}")
        return best, False
    return best, True
