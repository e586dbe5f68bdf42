"""The callbacks that `report_to` asks for, each imported when it is meant."""

from __future__ import annotations

from ..configs import TrainConfig
from .reporting import Reporter


def reporters(config: TrainConfig) -> list[Reporter]:
    """Return what `report_to` asks for.

    Raises
    ------
    ConfigError
        Its package is not installed.
    """
    found: list[Reporter] = []
    for name in config.report_to:
        if name == "tensorboard":
            from .tensorboard_callback import TensorBoardCallback

            found.append(TensorBoardCallback(every=config.logging_steps))
        else:
            from .wandb_callback import WandbCallback

            found.append(WandbCallback(every=config.logging_steps, config=config.model_dump(mode="json")))
    return found
