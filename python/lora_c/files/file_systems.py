"""What kind of file system a folder lies on, as far as Linux says so."""

from __future__ import annotations

import os
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_IN_MEMORY = {"tmpfs", "ramfs"}


def is_in_memory(folder: Path) -> bool:
    """Whether files in a folder take memory and no disk; False where nobody knows."""
    try:
        device = os.stat(folder).st_dev
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        mount, dash, kind = line.partition(" - ")
        if dash and mount.split()[2] == number:
            return kind.split()[0] in _IN_MEMORY
    return False
