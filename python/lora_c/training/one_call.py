"""What holds for one call of `Trainer.train`, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .run_settings import check_same_parameters

if TYPE_CHECKING:
    from .trainer import Trainer


@contextmanager
def one_call(trainer: Trainer, resumes: bool) -> Iterator[None]:
    """Settings of the decoder and the memory of activations are those of the run while the block runs.

    Raises
    ------
    ConfigError
        The run has ended or is under way, was left in the middle of a step, or its parameters are no longer the model's.
    """
    _check_can_begin(trainer, resumes)
    model = trainer.model
    trainer.is_running = model.is_training = True
    model.decoder.free_activations()  # what earlier passes have kept is not of this run
    try:
        with trainer.settings():
            yield
    finally:
        trainer.is_running = model.is_training = False
        model.decoder.free_activations()


def _check_can_begin(trainer: Trainer, resumes: bool) -> None:
    if trainer.is_running:
        raise ConfigError("train: expected one run of a Trainer at a time, got a second call; let the first one end")
    if trainer.is_torn and not resumes:
        raise ConfigError(
            "train: expected the state after a whole step, got one that was left in the middle of it; call "
            "train(resume=True), which goes on from the latest checkpoint, or make another Trainer"
        )
    if trainer.result is not None and not trainer.result.interrupted and not resumes:
        raise ConfigError(
            f"train: expected a run with steps left, got one that has done all {trainer.result.steps}; make another Trainer "
            "with the model as it is now, or train(resume=True) with one of more max_steps or num_train_epochs"
        )
    check_same_parameters(trainer.model, trainer.parameters)
    if trainer.model.is_training:
        raise ConfigError("train: expected a model that no other Trainer trains, got one in a run; let that one end")
