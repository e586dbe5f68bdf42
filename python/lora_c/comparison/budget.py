"""How many steps a budget is: of steps, of tokens, or of seconds."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.batching import step_batches
from ..errors import CheckpointError
from ..files.atomic import write_json
from ..files.json_files import read_json_object

if TYPE_CHECKING:
    from ..configs import TrainConfig
    from ..data import Dataset
    from ..training.trainer import Trainer

STEPS_FILE = "steps.json"
_TIMED = 3


def steps_for_tokens(tokens: int, data: Dataset, config: TrainConfig) -> int:
    """Steps that train so many tokens at the mean length of the data, the same for every row."""
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    mean = sum(len(sample.input_ids) for sample in data.samples) / len(data)
    return max(1, math.ceil(tokens / (mean * min(per_step, len(data)))))


def steps_for_seconds(seconds: float, trainer: Trainer, folder: Path) -> int:
    """Steps that take so long here, by passes that change nothing; decided once for a folder.

    Raises
    ------
    CheckpointError
        The file in which it was kept is damaged.
    """
    path = folder / STEPS_FILE
    if path.exists():
        steps = read_json_object(path, "remove the folder to begin anew").get("steps")
        if type(steps) is not int or steps < 1:
            raise CheckpointError(f"{path}: expected a number of steps, got {steps!r}; remove the folder to begin anew")
        return steps
    steps = max(1, int(seconds / _seconds_of_a_step(trainer)))
    write_json(path, {"steps": steps})
    return steps


def _seconds_of_a_step(trainer: Trainer) -> float:
    config, taken = trainer.config, []
    with trainer.settings():
        for step in range(1 + _TIMED):  # the first one warms up
            begin = time.perf_counter()
            _, batches = step_batches(
                trainer.train_data, step, batch_size=config.per_device_train_batch_size,
                accumulation=config.gradient_accumulation_steps, seed=config.seed,
            )  # fmt: skip
            for batch in batches:
                arrays = batch.input_ids, batch.cu_seqlens, batch.targets, batch.loss_weight
                trainer.model.decoder.forward_backward(*arrays, grad_scale=1.0, dropout_step=step)
            taken.append(time.perf_counter() - begin)
    trainer.optimizer.zero_grad()
    return max(1e-6, sum(taken[1:]) / _TIMED)
