"""What systems do differently, for the package: nothing else asks which one it is. For the C library: `lora_c/base/os.h`.

Windows has no SIGHUP, no flock, cannot open a folder and does not rename what is open. macOS keeps what was synced in the
disk's own cache unless it is asked for more.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# What ends a run in an orderly way: Ctrl-C, a stop by another process, and a terminal that goes. On Windows, where a SIGTERM
# of others ends a process at once, SIGBREAK is the last two: Ctrl-Break, CTRL_BREAK_EVENT, a console that is closed.
_ENDS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
STOPPING = tuple(number for name in _ENDS if (number := getattr(signal, name, None)) is not None)
NO_LINK, NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
BINARY = getattr(os, "O_BINARY", 0)
FOLDERS_OPEN = os.name == "posix"  # a folder has a handle: it can be locked and synced
RENAMES_OPEN = os.name == "posix"  # a file may be open while its name changes
HAS_CODE_PAGES = os.name == "nt"  # Python writes pipes and files in letters of the country, not in UTF-8


def sync(handle: int) -> None:
    """Bring a file to the disk; on macOS out of the disk's cache, too, where the disk knows how."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None and fcntl is not None:
        try:
            fcntl.fcntl(handle, full)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOTTY):
                raise
    os.fsync(handle)


def sync_file(path: str | os.PathLike[str]) -> None:
    """The same by its name."""
    handle = os.open(path, BINARY | (os.O_RDONLY if os.name == "posix" else os.O_RDWR))  # Windows syncs what it may write
    try:
        sync(handle)
    finally:
        os.close(handle)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Bring the names in a folder to the disk, where the system and the file system can."""
    if not FOLDERS_OPEN:
        return
    try:
        sync_file(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def lock(handle: int, wait: bool = True) -> None:
    """Lock a file for this process until it is closed; without locks nothing happens.

    Raises
    ------
    OSError
        Another process holds it and `wait` is false, or the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def has_locks() -> bool:
    """Whether `lock` keeps other processes out."""
    return fcntl is not None


def read_at(handle: int, size: int, place: int) -> bytes:
    """Read bytes from a place in a file that nobody else reads by this handle."""
    if hasattr(os, "pread"):
        return os.pread(handle, size, place)
    os.lseek(handle, place, os.SEEK_SET)
    return os.read(handle, size)


def signal_pipe() -> tuple[int, int]:
    """The ends of a pipe for `signal.set_wakeup_fd`, which wants one that never waits, but on Windows, where it is none before
    Python 3.12."""
    reader, writer = os.pipe()
    if hasattr(os, "set_blocking"):
        os.set_blocking(writer, False)
    return reader, writer


def cpus() -> set[int]:
    """The CPUs that this process may use, by their numbers."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def peak_bytes() -> int:
    """The most memory that this process has had; 0 where the system does not say."""
    if resource is None:
        return 0
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def page_faults() -> int:
    """Page faults of this process so far that needed no disk; 0 where the system does not say."""
    return 0 if resource is None else int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
