"""Ranks of MPI, by mpi4py."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import mpi4py

mpi4py.rc.thread_level = "multiple"  # the heartbeat is a thread of its own
from mpi4py import MPI  # noqa: E402

from .communicator import F32, Exchanger  # noqa: E402
from .heartbeat import Heartbeat  # noqa: E402

_NAP = 2e-4  # seconds between two looks at what is on its way
_LEAVE = 20.0  # seconds that an abort may take before the process leaves by itself


class _Beside:
    """The exchange by a second thread. MPI would wait with the whole CPU; this one looks now and then."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm

    def all_to_all(self, send: F32, to: Sequence[int], receive: F32, of: Sequence[int]) -> None:
        self._wait(self._comm.Ialltoallv([send, to, MPI.FLOAT], [receive, of, MPI.FLOAT]))

    def all_gather_floats(self, own: F32, receive: F32, of: Sequence[int]) -> None:
        self._wait(self._comm.Iallgatherv([own, MPI.FLOAT], [receive, of, MPI.FLOAT]))

    @staticmethod
    def _wait(request: MPI.Request) -> None:
        while not request.Test():
            time.sleep(_NAP)


class MPICommunicator:
    """The processes of `MPI_COMM_WORLD`; each watches the one before it."""

    def __init__(self) -> None:
        self._comm = MPI.COMM_WORLD.Dup()
        self._node = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()
        self.local_rank, self.local_size = self._node.Get_rank(), self._node.Get_size()
        self.host = MPI.Get_processor_name()
        self.library = " ".join(MPI.Get_library_version().split()[:3]).rstrip(",")
        self._heartbeat: Heartbeat | None = None
        self.beside: Exchanger | None = None
        if MPI.Query_thread() == MPI.THREAD_MULTIPLE and self.size > 1:
            hosts = self._comm.allgather(self.host)
            self._heartbeat = Heartbeat(MPI.COMM_WORLD.Dup(), hosts, self._tell_and_abort)
            self._heartbeat.start()
            self.beside = _Beside(self._comm.Dup())

    def all_gather(self, value: Any) -> list[Any]:
        return list(self._comm.allgather(value))

    def broadcast(self, value: Any, local: bool = False) -> Any:
        return (self._node if local else self._comm).bcast(value, root=0)

    def all_to_all(self, send: F32, to: Sequence[int], receive: F32, of: Sequence[int]) -> None:
        self._comm.Alltoallv([send, to, MPI.FLOAT], [receive, of, MPI.FLOAT])

    def all_gather_floats(self, own: F32, receive: F32, of: Sequence[int]) -> None:
        self._comm.Allgatherv([own, MPI.FLOAT], [receive, of, MPI.FLOAT])

    def barrier(self) -> None:
        self._comm.Barrier()

    def abort(self, code: int) -> NoReturn:
        sys.stdout.flush()
        self._comm.Abort(code)
        time.sleep(_LEAVE)  # the launcher ends this process, too
        os._exit(code)

    def close(self) -> None:
        self._comm.Barrier()
        if self._heartbeat is not None:
            self._heartbeat.stop()

    def _tell_and_abort(self, text: str) -> None:
        os.write(2, f"lora-c: {text}\n".encode())
        self._comm.Abort(1)
        time.sleep(_LEAVE)
        os._exit(1)
