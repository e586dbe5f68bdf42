"""An end to the wait for ranks that do not come: one of them was stopped, or hangs, before anybody watches it.

MPI's own start waits for ever and holds the interpreter meanwhile, so another process counts the seconds.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .launched import Launched, seconds_of

_SECONDS = 45.0  # from the start of one rank to that of the last one, where LORA_C_JOIN_SECONDS does not say it
_WATCH = """
import os, select, sys
seconds, rank, text = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if not select.select([0], [], [], seconds)[0]:
    os.write(2, text.encode())
    os.kill(rank, 9)
"""


@contextmanager
def joined_in_time(found: Launched) -> Iterator[None]:
    """End this process, and so the job, when the block takes longer."""
    seconds = seconds_of("LORA_C_JOIN_SECONDS", _SECONDS)
    text = (
        f"lora-c: rank {found.rank} of {found.size} on {socket.gethostname()}: expected all ranks to join within "
        f"{seconds:.0f} s, got fewer: one was stopped or hangs; the job ends (LORA_C_JOIN_SECONDS: more time)\n"
    )
    command = [sys.executable, "-I", "-S", "-c", _WATCH, str(seconds), str(os.getpid()), text]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        assert watcher.stdin is not None
        watcher.stdin.close()
        watcher.wait()
