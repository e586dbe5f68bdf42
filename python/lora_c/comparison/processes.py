"""A job in a process of its own, which ends with the one that began it, however that ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ..errors import LoraCError
from ..files.atomic import write_json
from ..files.json_files import read_json_object
from ..files.os_errors import make_folder

JOB, RESULT, LOG = "job.json", "result.json", "log.txt"
_PATIENCE = 30.0  # seconds in which a job that is stopped saves what it has
_MOST_WORDS = 800  # characters of a job's last line: an error with its way out


class JobFailedError(LoraCError):
    """The process has ended without a result; the message says how, and where its words are."""


def run_job(module: str, folder: Path, job: dict[str, Any], result: str = RESULT) -> dict[str, Any]:
    """Run a module with a job in a new interpreter and return what it has written.

    Parameters
    ----------
    module : str
        Run as ``python -m module FOLDER``; it reads `JOB` there and writes the result.
    result : str
        Name of the file that it writes.

    Raises
    ------
    JobFailedError
        It has ended without one.
    """
    write_json(make_folder(folder) / JOB, job)
    with open(folder / LOG, "ab") as log:
        process = subprocess.Popen([sys.executable, "-m", module, str(folder)], stdin=subprocess.PIPE, stdout=log, stderr=log)
    try:
        code = process.wait()
    except BaseException:
        _stop(process)
        raise
    finally:
        assert process.stdin is not None
        process.stdin.close()
    if code != 0 or not (folder / result).exists():
        raise JobFailedError(f"{_how(code)}; its last words: {_last_line(folder / LOG)} (all in {folder / LOG})")
    return read_json_object(folder / result, "remove the folder to begin anew")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let it save what it has; Ctrl-C in a terminal has reached it, too."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_PATIENCE)
    except BaseException:
        process.kill()
        process.wait()


def end_with_parent() -> None:
    """End this process at once when the one that began it is gone: the pipe that it holds is closed then."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _how(code: int) -> str:
    if code == -9:  # SIGKILL, a name that Windows lacks
        return "ended by signal 9 (as the system does where memory ends)"
    return f"ended by signal {-code}" if code < 0 else f"ended with code {code}"


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "none")
    return re.sub(r"^lora_c\.errors\.\w+: ", "", last)[:_MOST_WORDS]
