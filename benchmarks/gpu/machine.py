"""Which machine a result is of: the GPU with its driver and clocks, the CPU, the date and the commit."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Of nvidia-smi --help-query-gpu.
_QUERIES = (
    "name", "driver_version", "compute_cap", "memory.total", "memory.used", "clocks.sm", "clocks.mem", "clocks.max.sm",
    "clocks.max.mem", "power.limit", "temperature.gpu", "ecc.mode.current", "clocks_throttle_reasons.active",
)  # fmt: skip


def said(*command: str) -> str:
    """Return what a program says, "" where it is not there or fails."""
    if not shutil.which(command[0]):
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def gpus() -> list[dict[str, str]]:
    """Return what nvidia-smi says of each GPU, if there is one. Each query alone: drivers differ in what they know."""
    found: list[dict[str, str]] = []
    for query in _QUERIES:
        lines = said("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader").splitlines()
        found += [{} for _ in range(len(lines) - len(found))]
        for gpu, line in zip(found, lines, strict=False):
            gpu[query.replace(".", "_")] = line.strip()
    return found


def memory_used() -> list[str]:
    """Return the memory in use of each GPU, all processes together."""
    return said("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader").splitlines()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def facts() -> dict[str, Any]:
    """Return everything that a result has to say of where it comes from."""
    changed = said("git", "status", "--porcelain", "--untracked-files=no")
    commit = said("git", "rev-parse", "HEAD") or os.environ.get("COMMIT", "unknown")
    nvcc = said("nvcc", "--version").splitlines()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit + (" with changes" if changed else ""),
        "gpus": gpus(), "nvcc": nvcc[-1] if nvcc else "",
        "cpu": _cpu(), "cpus": len(os.sched_getaffinity(0)), "python": platform.python_version(),
    }  # fmt: skip
