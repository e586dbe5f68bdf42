"""Training runs in child processes, each met by something at a moment of it: a signal, a log that is gone, a full disk.

Called with a folder that holds `model/` and `data.jsonl`; prints what became of each run as one JSON object a line.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.repocard_data  # noqa: F401
import safetensors.numpy  # noqa: F401
import tokenizers  # noqa: F401

import lora_c.cli.commands
import lora_c.cli.train
import lora_c.data
import lora_c.display.plot
import lora_c.model.opening
import lora_c.runs.model_card
import lora_c.training.sample_answers
import lora_c.training.state
from lora_c.cli import main
from lora_c.training.trainer import Trainer

try:
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import matplotlib.ticker  # noqa: F401
except ImportError:
    pass

STEPS = 5
FLAGS = (
    "--save-steps", "2", "--eval-steps", "2", "--val-fraction", "0.2", "--resume", "auto", "--learning-rate", "1e-2",
    "--lora-dropout", "0.1", "--method", "lora",
)  # fmt: skip
# Where in the run: what is called there, and at which call of it.
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "loading": (lora_c.model.opening, "load_weights", 1),
    "answers before": (lora_c.training.sample_answers, "generate_text", 1),
    "evaluation before step 1": (Trainer, "measure", 1),
    "step": (Trainer, "_forward_backward", 3),
    "evaluation": (Trainer, "measure", 2),
    "checkpoint": (lora_c.training.state, "write_safetensors", 1),
    "last checkpoint": (lora_c.training.state, "write_safetensors", 3),
    "final save": (lora_c.cli.train, "save_result", 1),
    "model card": (lora_c.runs.model_card, "model_card", 1),
    "plot": (lora_c.display.plot, "_write", 1),
}


def send(*numbers: int) -> Callable[[], None]:
    def act() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.002)

    return act


def lose_log(path: str) -> Callable[[], None]:
    def act() -> None:
        os.dup2(os.open(path, os.O_WRONLY), 2)

    return act


def close_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 2)


class Terminal:
    """A terminal as standard error, read by a thread until it is closed, with SIGHUP ignored as under nohup."""

    def __init__(self) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.master, terminal = os.openpty()
        os.dup2(terminal, 2)
        os.close(terminal)
        self.closing = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)  # it holds up nothing where it is never closed
        self.reader.start()

    def _read(self) -> None:
        while not self.closing.is_set():
            if select.select([self.master], [], [], 0.005)[0]:
                os.read(self.master, 4096)

    def close(self) -> None:
        self.closing.set()
        self.reader.join()
        os.close(self.master)


def fill_disk() -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    os.fsync = fail


EVENTS: dict[str, Callable[[], None]] = {
    "INT": send(signal.SIGINT),
    "TERM": send(signal.SIGTERM),
    "HUP": send(signal.SIGHUP),
    "INT twice": send(signal.SIGINT, signal.SIGINT),
    "closed terminal": lambda: None,
    "closed pipe": close_pipe,
    "full log": lose_log("/dev/full"),
    "full disk": fill_disk,
}


def meet(moment: str, event: Callable[[], None]) -> None:
    """Let the event happen when the moment comes."""
    place, name, number = MOMENTS[moment]
    real, calls = getattr(place, name), []

    def hooked(*args: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            event()
        return real(*args, **options)

    setattr(place, name, hooked)


def train(folder: Path, out: str, event: str | None = None, moment: str = "") -> int:
    """Run `lora-c train` in a child process; its exit status."""
    child = os.fork()
    if child == 0:
        log = os.open(folder / f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 2)
        os.dup2(log, 1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if event is not None:
            meet(moment, EVENTS[event] if event != "closed terminal" else Terminal().close)
        if moment != "plot":
            lora_c.display.plot._write = lambda *args: True
        places = ["--model", f"{folder}/model", "--data", f"{folder}/data.jsonl", "--output-dir", f"{folder}/{out}"]
        sys.argv = ["lora-c", "train", *places, "--max-steps", str(STEPS), *FLAGS]
        try:
            main()
            status = 0
        except SystemExit as done:
            status = done.code if isinstance(done.code, int) else 0 if done.code is None else 1
        except BaseException:
            import traceback

            traceback.print_exc()
            status = 99
        os._exit(status)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended)


def run_all(folder: Path) -> None:
    train(folder, "whole")
    adapter = (folder / "whole/adapter_model.safetensors").read_bytes()
    inputs = [folder / "data.jsonl", *sorted((folder / "model").iterdir())]
    before = [path.read_bytes() for path in inputs]
    for event in EVENTS:
        for moment in MOMENTS:
            out = f"{event} {moment}".replace(" ", "_")
            file = folder / out / "adapter_model.safetensors"
            status = train(folder, out, event, moment)
            first = file.read_bytes() if file.exists() else b""
            log = (folder / f"{out}.log").read_text(errors="replace")
            again = 0 if first == adapter else train(folder, out)
            same = file.exists() and file.read_bytes() == adapter
            found = {"event": event, "moment": moment, "status": status, "log": log, "whole at once": first == adapter}
            found |= {"again": again, "same": same, "inputs": [path.read_bytes() for path in inputs] == before}
            found["left"] = sorted(p.name for p in (folder / out).rglob("*.part*")) if (folder / out).exists() else []
            found["log again"] = "" if same else (folder / f"{out}.log").read_text(errors="replace")[len(log) :]
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
