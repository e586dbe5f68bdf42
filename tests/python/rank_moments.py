"""`lora-c train` as one of several ranks, one of which is met by something in the middle of a step.

Called with an event, the rank that it meets, at which of its passes, and the arguments of lora-c.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lora_c.training.state
from lora_c.cli import main
from lora_c.comm.launched import launched
from lora_c.training.trainer import Trainer


def fail() -> None:
    raise RuntimeError("this rank has failed")


def fill_disk() -> None:
    """From now on no checkpoint can be written."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    lora_c.training.state.write_safetensors = refuse


def say_pages() -> None:
    """What of the base this rank holds alone (Pss) and with others (Rss), in KiB."""
    text = Path("/proc/self/smaps").read_text().partition("lora-c base")[2]
    found = {name: int(value) for name, value in re.findall(r"(Rss|Pss): +(\d+) kB", text)[:2]}
    os.write(2, f"pages {json.dumps(found)}\n".encode())


EVENTS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "raise": fail,
    "full disk": fill_disk,
    "pages": say_pages,
}


def meet(act: Callable[[], None], at: int) -> None:
    usual, calls = Trainer._forward_backward, [0]

    def passing(self: Trainer, *args: Any) -> float:
        calls[0] += 1
        if calls[0] == at:
            act()
        return usual(self, *args)

    Trainer._forward_backward = passing  # type: ignore[method-assign]


if __name__ == "__main__":
    event, rank, at, *arguments = sys.argv[1:]
    found = launched()
    if found is not None and found.rank == int(rank):
        if event in EVENTS:
            meet(EVENTS[event], int(at))
        else:
            arguments += event.split()
    sys.argv = ["lora-c", *arguments]
    main()
