"""Whether this process was started as one of several, as the environment says it: nothing of MPI is loaded to find out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import ConfigError

# (launcher, variable of the size, variable of the rank). Slurm's own are those of a step of srun: the
# script of sbatch, which is one process, has SLURM_NTASKS, too.
_LAUNCHERS = (
    ("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MPICH", "PMI_SIZE", "PMI_RANK"),
    ("Slurm", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


class Launched(NamedTuple):
    """What a launcher has told a process of itself."""

    launcher: str
    rank: int
    size: int


def launched(environment: Mapping[str, str] | None = None) -> Launched | None:
    """Return what the launcher says; None where this process is alone."""
    env = os.environ if environment is None else environment
    for launcher, size, rank in _LAUNCHERS:
        if env.get(size, "").isdecimal() and env.get(rank, "").isdecimal():
            return Launched(launcher, int(env[rank]), int(env[size])) if int(env[size]) > 1 else None
    return None


def seconds_of(variable: str, default: float) -> float:
    """What an environment variable says, in seconds.

    Raises
    ------
    ConfigError
        It is no number of 0 or more.
    """
    given = os.environ.get(variable)
    if not given:
        return default
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"{variable}: expected seconds, 0 or more, got {given!r}; the default is {default:g}")
    return seconds
