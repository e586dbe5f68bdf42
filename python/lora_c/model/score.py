"""The values that the score of a classifier begins with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..families.multimodal import text_config

_DEFAULT_STD = 0.02  # transformers' initializer_range
_STREAM = 0x5C02E  # of the draws, apart from those of the data order


def fresh_score(config: Mapping[str, Any], shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Values of a score that nothing has trained: normal, with the standard deviation that config.json gives.

    Raises
    ------
    CheckpointError
        That is no number.
    """
    std = text_config(config).get("initializer_range", _DEFAULT_STD)
    if isinstance(std, bool) or not isinstance(std, (int, float)) or not 0 <= std < 1e3:
        raise CheckpointError(f"config.json: initializer_range: expected a number from 0 on, got {str(std)[:60]!r}")
    draws = np.random.Generator(np.random.Philox(key=[seed, _STREAM]))
    return (std * draws.standard_normal(shape)).astype(np.float32)
