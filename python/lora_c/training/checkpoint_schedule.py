"""When a run writes its checkpoints.

`save_steps` of 1 or more: after every so many steps. Below 1, as in transformers: after every such share of the run, but only
when the time that checkpoints take stays below 2 % of the run's time so far; else as soon as it does. One that could not be
written is tried again after half a minute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

LARGEST_SHARE = 0.02  # of the time of a run
RETRY_SECONDS = 30.0


class CheckpointSchedule:
    """Asked after each step.

    Parameters
    ----------
    save_steps : float
        As in `TrainConfig`.
    total_steps : int
        Of the whole run.
    cost : float
        Seconds that the first checkpoint is expected to take.
    clock : callable
        Seconds.
    """

    def __init__(
        self, save_steps: float, total_steps: int, cost: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._gives_way = 0 < save_steps < 1
        self.every = math.ceil(save_steps * total_steps) if self._gives_way else int(save_steps)
        self._cost, self._clock = cost, clock
        self._started, self._spent = clock(), 0.0
        self._waiting = False  # one is due and not written
        self._retry_at: float | None = None

    def is_due(self, done: int) -> bool:
        """Whether to write one after so many steps."""
        if self.every and done % self.every == 0:
            self._waiting, self._retry_at = True, None
        if not self._waiting:
            return False
        if self._retry_at is not None:
            return self._clock() >= self._retry_at
        return not self._gives_way or self._spent + self._cost <= LARGEST_SHARE * (self._clock() - self._started)

    def written(self, seconds: float) -> None:
        """One was written, and took so long."""
        self._waiting, self._retry_at = False, None
        self._spent, self._cost = self._spent + seconds, seconds

    def failed(self) -> None:
        """One could not be written."""
        self._retry_at = self._clock() + RETRY_SECONDS


def expected_seconds(n_bytes: int) -> float:
    """A cautious guess of the time that writing and syncing takes, before the first one is measured."""
    return 0.05 + n_bytes / 200e6
