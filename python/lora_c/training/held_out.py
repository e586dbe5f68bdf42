"""The data that a trainer holds out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..configs import TrainConfig
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..data import Dataset


def held_out(train_data: Dataset, eval_data: Dataset | None, config: TrainConfig) -> tuple[Dataset, Dataset | None]:
    """Training data and held-out data: what is given, or a share of the training data as `val_fraction` says.

    Raises
    ------
    ConfigError
        The held-out data that is given is not that share.
    """
    if config.val_fraction == 0:
        return train_data, eval_data
    if eval_data is None:
        return train_data.split(config.val_fraction, config.seed)
    whole = len(train_data) + len(eval_data)
    if abs(len(eval_data) - config.val_fraction * whole) >= 1 and min(len(train_data), len(eval_data)) > 1:
        raise ConfigError(
            f"val_fraction: expected it unset beside eval_data, or the share that was split off, got {config.val_fraction:g} "
            f"with {len(eval_data)} of {whole} samples held out; leave one of them out"
        )
    return train_data, eval_data
