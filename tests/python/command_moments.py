"""Commands in child processes, each met by something at a moment of it: a signal, a reader that is gone, a full disk.

Called with a folder that holds the inputs and a file of cases; prints what became of each as one JSON object a line. A moment
is a number of function calls of the package.
"""

from __future__ import annotations

import importlib
import json
import os
import pty
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lora_c
import lora_c.cli.commands
from lora_c.cli import main

PACKAGE = str(Path(lora_c.__file__).parent)
MODULES = (
    "cli.merge", "cli.export", "cli.quantize", "cli.evaluate", "cli.generate", "cli.data", "model.opening", "model.saving",
    "model.merge_report", "gguf", "gguf.models", "gguf.same_tokenizer", "adapters.gguf_format", "adapters.mlx_format",
    "adapters.formats", "training.trainer", "files.atomic", "data.records", "checkpoints.safetensors_writer",
)  # fmt: skip
NEVER = 1 << 60


def act(kind: str, streams: dict[str, int]) -> None:
    """What happens at the moment."""
    if kind in ("INT", "TERM", "HUP", "INT twice"):
        os.kill(os.getpid(), getattr(signal, f"SIG{kind[:4].split()[0]}"))
    elif kind.startswith("terminal"):
        os.close(streams["terminal"])
    elif kind in ("stdout closed", "stderr closed"):
        os.close(streams[kind])
    elif kind in ("stdout full", "stderr full"):
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1 if kind.startswith("stdout") else 2)
    elif kind.startswith("disk full"):
        size = int(kind.split()[-1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # a write beyond it fails, as on a full disk


def redirect(kind: str, folder: Path) -> dict[str, int]:
    """Let the streams of the child lead where the case asks; return what to close at its moment."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o666), number)
    found: dict[str, int] = {}
    if kind.startswith("terminal"):
        os.setsid()
        master, slave = pty.openpty()
        import fcntl
        import termios

        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for number in (0, 1):
            os.dup2(slave, number)
        os.close(slave)
        found["terminal"] = master
    if kind in ("stdout closed", "stderr closed"):
        reader, writer = os.pipe()
        os.dup2(writer, 1 if kind.startswith("stdout") else 2)
        os.close(writer)
        found[kind] = reader
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if kind == "terminal, HUP ignored":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return found


def at_moment(moment: int, twice: bool, action: Callable[[], None], counts: Path | None) -> None:
    """Count the calls of the package's functions; act at one of them, and again soon after where it is asked for."""
    count, first_save, begun = 0, 0, False

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count, first_save, begun
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        begun = begun or frame.f_code is lora_c.cli.commands.run.__code__  # before, no signal is answered yet
        if not begun:
            return
        count += 1
        if not first_save and frame.f_code.co_name == "_create":
            first_save = count
        if count == moment or (twice and count in (moment + 1, moment + 3)):
            action()
        if counts is not None and frame.f_code.co_name == "flush_output":
            counts.write_text(json.dumps([count, first_save]))

    sys.setprofile(profile)


def run(case: dict[str, Any]) -> None:
    """In the child; never returns."""
    folder = Path(case["folder"])
    streams = redirect(case["kind"], folder)
    twice = case["kind"] == "INT twice"
    sys.argv = ["lora-c", *case["command"]]
    counts = folder / "counts" if case["moment"] == NEVER else None
    at_moment(case["moment"], twice, lambda: act(case["kind"], streams), counts)
    main()


def result_of(case: dict[str, Any], pid: int) -> dict[str, Any]:
    limit = time.monotonic() + 60
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > limit:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    folder = Path(case["folder"])
    said = {name: (folder / name).read_text(errors="replace") for name in ("stdout", "stderr")}
    return {"id": case["id"], "code": os.waitstatus_to_exitcode(ended[1]), **said}


if __name__ == "__main__":
    for name in MODULES:
        importlib.import_module(f"lora_c.{name}")
    for line in sys.stdin:
        case = json.loads(line)
        sys.stdout.flush()
        if (pid := os.fork()) == 0:
            run(case)
        print(json.dumps(result_of(case, pid)), flush=True)
