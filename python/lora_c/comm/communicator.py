"""What training knows of other processes. One that is alone answers itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


class Exchanger(Protocol):
    """What sends gradients; every rank calls the same methods in the same order."""

    def all_to_all(self, send: F32, to: Sequence[int], receive: F32, of: Sequence[int]) -> None:
        """Send `to[r]` numbers to each rank r, one rank behind the other, and receive `of[r]` from it."""

    def all_gather_floats(self, own: F32, receive: F32, of: Sequence[int]) -> None:
        """Receive the `of[r]` numbers of each rank r, one rank behind the other."""


class Communicator(Exchanger, Protocol):
    """Every rank calls the same methods in the same order.

    Attributes
    ----------
    rank, size : int
        Which one this is, and how many there are.
    local_rank, local_size : int
        The same among those of this node.
    host : str
        The node.
    beside : Exchanger or None
        For one other thread, which computes on the side: it leaves the CPU to others while it waits. None where there can be
        no second thread.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    beside: Exchanger | None

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, which may be small objects, in the order of the ranks."""

    def broadcast(self, value: Any, local: bool = False) -> Any:
        """Return the value of rank 0, or of local rank 0 of this node."""

    def barrier(self) -> None:
        """Wait until every rank is here."""

    def abort(self, code: int) -> NoReturn:
        """End all ranks at once."""

    def close(self) -> None:
        """Wait for the others; nobody is watched any more."""


class SelfCommunicator:
    """A process that is alone."""

    rank = local_rank = 0
    size = local_size = 1
    beside: Exchanger | None = None

    def __init__(self) -> None:
        self.host = socket.gethostname()

    def all_gather(self, value: Any) -> list[Any]:
        return [value]

    def broadcast(self, value: Any, local: bool = False) -> Any:
        return value

    def all_to_all(self, send: F32, to: Sequence[int], receive: F32, of: Sequence[int]) -> None:
        receive[:] = send

    def all_gather_floats(self, own: F32, receive: F32, of: Sequence[int]) -> None:
        receive[:] = own

    def barrier(self) -> None:
        pass

    def abort(self, code: int) -> NoReturn:
        os._exit(code)

    def close(self) -> None:
        pass


def is_main(comm: Communicator) -> bool:
    """Whether this rank is the one that writes and prints."""
    return comm.rank == 0


def any_rank(comm: Communicator, flag: bool) -> bool:
    """Whether a flag is set on any rank."""
    return flag if comm.size == 1 else any(comm.all_gather(bool(flag)))
