"""A sign of life from each rank to the next one, in a circle: a rank that is stopped, or whose machine is gone, is noticed by
the one behind it, which ends the job. MPI alone would wait for it for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .launched import seconds_of

INTERVAL = 1.0  # seconds between signs
_PATIENCE = 30.0  # seconds without one, where LORA_C_HEARTBEAT_SECONDS does not say it; 0: nobody is watched
_UNTAKEN = 120  # signs that a rank which is stopped may leave untaken


class Heartbeat:
    """A thread that sends signs to the rank behind this one and waits for those of the rank before it.

    Parameters
    ----------
    comm : mpi4py communicator
        Nobody else uses it.
    hosts : sequence of str
        Of every rank.
    alarm : callable
        Called with a line when the rank before this one is silent.
    """

    def __init__(self, comm: Any, hosts: Sequence[str], alarm: Callable[[str], None]) -> None:
        rank, size = comm.Get_rank(), len(hosts)
        self._comm, self._alarm = comm, alarm
        self._patience = seconds_of("LORA_C_HEARTBEAT_SECONDS", _PATIENCE)
        self._next, self._before = (rank + 1) % size, (rank - 1) % size
        self._name = f"rank {self._before} of {size} on {hosts[self._before]}"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lora-c heartbeat", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; every rank does so after a barrier."""
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        sign, got, silence, last = np.zeros(1, np.int8), np.zeros(1, np.int8), 0.0, time.monotonic()
        sent: list[Any] = []
        while not self._ended.wait(INTERVAL):
            sent = [request for request in sent if not request.Test()]
            if len(sent) < _UNTAKEN:
                sent.append(self._comm.Isend(sign, dest=self._next))
            heard = False
            while self._comm.Iprobe(source=self._before):
                self._comm.Recv(got, source=self._before)
                heard = True
            now = time.monotonic()
            # What this process itself has slept through is no silence of others: the whole job may have been stopped.
            silence = 0.0 if heard else silence + min(now - last, 2 * INTERVAL)
            last = now
            if self._patience and silence > self._patience:
                self._alarm(
                    f"{self._name}: expected a sign of life every second, got none for {silence:.0f} s: it was stopped, or "
                    "its machine is out of reach; the job ends, go on from the last checkpoint with --resume"
                )
                return
