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
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import SaveError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")


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
    aside = _aside(target)
    with _clear_errors(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(aside, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, target)
            _sync_folder(target.parent)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


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
    aside = _aside(target)
    with _clear_errors(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            aside.mkdir()
            yield aside
            _sync_tree(aside)
            if target.exists():
                _swap(target, aside, owned)
            else:
                os.rename(aside, target)
            _sync_folder(target.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


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
    linked = []
    for name in kept:  # hard links first: plain files are at both places when the names change hands
        if (target / name).is_file() and not (target / name).is_symlink():
            os.link(target / name, aside / name)
            linked.append(name)
    if not _exchange(aside, target):
        previous = target.with_name(f".{target.name}.previous")
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(target, previous)
        os.rename(aside, target)
        os.rename(previous, aside)
    for name in kept:
        if name not in linked:
            os.rename(aside / name, target / name)
    shutil.rmtree(aside, ignore_errors=True)


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
    """Return the folder, moving the previous one back if a crash struck between the two renames of a save."""
    target = Path(os.path.realpath(path))
    previous = target.with_name(f".{target.name}.previous")
    if not target.exists() and previous.is_dir():
        os.rename(previous, target)
    return target
