"""Atomic writes: write aside, fsync, rename. The previous state survives every failure.

A crash, a full disk or a kill at any moment leaves either the old file (folder) or the new one, never a mixture.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .aside import aside_of, remove_stale
from .errors import SaveError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turn 'no space left' into one sentence that names the file; other OS errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise SaveError(
                f"{path}: expected room on the disk, got {error.strerror or 'no space left'}; free some space or "
                f"choose another folder (what was there before is unchanged)"
            ) from error
        raise


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a binary file that appears at `path` only when the block ends without an error.

    Raises
    ------
    SaveError
        The disk is full; the file that stood at `path` is unchanged.
    """
    target = Path(os.path.realpath(path))
    with _clear_errors(target), aside_of(target, folder=False) as (aside, handle):
        with open(handle, "wb", closefd=False) as file:
            yield file
            file.flush()
            os.fsync(handle)
        os.replace(aside, target)
        _sync_folder(target.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file atomically, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(path: str | os.PathLike[str], owned: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """Give an empty folder whose files appear together at `path` when the block ends without an error.

    Parameters
    ----------
    path : path
        The folder to create or to replace.
    owned : callable, optional
        Says by file name which files of an existing folder belong to an earlier save and are dropped.
        All other entries (logs, notes, subfolders) stay in the folder unless the new one has the same name.

    Raises
    ------
    SaveError
        The disk is full; the folder that stood at `path` is unchanged.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise SaveError(f"{target}: expected a folder or a free name, got a file; choose another name")
    with _clear_errors(target), aside_of(target, folder=True) as (aside, _):
        yield aside
        _sync_tree(aside)
        if target.exists():
            _swap(target, aside, owned)
        else:
            os.rename(aside, target)
        _sync_folder(target.parent)


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            handle = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        _sync_folder(Path(root))


def _swap(target: Path, aside: Path, owned: Callable[[str], bool] | None) -> None:
    """Put `aside` at `target` in one step where the system can, keeping entries that are not ours."""
    strangers = [entry.name for entry in os.scandir(target) if owned is None or not owned(entry.name)]
    kept = [name for name in strangers if not (aside / name).exists()]
    # Hard links first: when the names change hands, what is kept is at both places, and nothing is left to do.
    later = [name for name in kept if not _link(target / name, aside / name)]
    if later:  # these must outlive a kill before they are moved: under this name nothing is taken for an unfinished save
        aside = aside.rename(aside.with_suffix(".swap"))
    if not _exchange(aside, target):
        previous = target.with_name(f".{target.name}.previous")
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(target, previous)
        os.rename(aside, target)
        os.rename(previous, aside)
    for name in later:
        os.rename(aside / name, target / name)
    shutil.rmtree(aside, ignore_errors=True)


def _link(source: Path, copy: Path) -> bool:
    """Make a hard link of a file, or of every file of a folder; False, and nothing at `copy`, where that cannot be done."""
    try:
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, copy, symlinks=True, copy_function=os.link)
        else:
            os.link(source, copy, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.rmtree(copy, ignore_errors=True)
        return False
    return True


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders atomically (Linux renameat2); False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    result: int = rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return result == 0


def recover_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder, after a kill during a save: what it left is removed, and the previous state moved back in place."""
    target = Path(os.path.realpath(path))
    remove_stale(target)
    previous = target.with_name(f".{target.name}.previous")
    if not target.exists() and previous.is_dir():
        os.rename(previous, target)
    return target
