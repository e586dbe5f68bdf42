"""An adapter of a folder that somebody may be replacing: it is read whole, or not at all.

Its files are copied by one open folder: one that is exchanged by a rename, as saves of lora-c do, is the old one to its end.
Windows opens no folder; there they are copied by their names. Where files change while they are copied, it is tried again.
What is parsed is the copy, which nobody else writes: a file that is cut while it is mapped would end the process.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..adapters import read_adapter
from ..adapters.classifiers import labels_of_adapter
from ..adapters.kinds import loaded_adapter
from ..checkpoints.written import ADAPTER_CONFIG, ADAPTER_FILE, BASE_FOLDER, MLX_FILE
from ..errors import AdapterError
from ..files.system import BINARY, FOLDERS_OPEN, NO_WAIT
from ..model.loading import weights_of_folder

if TYPE_CHECKING:
    from ..adapters.adapter import Adapter
    from ..model.model import Model

Fingerprint = tuple[tuple[str, int, int, int, int], ...]
_FILES = (ADAPTER_CONFIG, ADAPTER_FILE, MLX_FILE)
_TRIES, _PAUSE = 40, 0.05
_SETTLED = 0.25  # seconds without a change: some replace one file after the other
_PIECE = 1 << 20


def is_adapter(folder: Path) -> bool:
    """Whether a folder has the files of one."""
    return (folder / ADAPTER_CONFIG).is_file() and any((folder / name).is_file() for name in _FILES[1:])


def fingerprint(folder: Path) -> Fingerprint | None:
    """What changes when the adapter does: names, inodes, sizes and times of its files; None where there are none."""
    try:
        return _fingerprint(folder, None)
    except OSError:
        return None


def read_from(folder: Path, model: Model, most_bytes: int) -> tuple[Adapter, Fingerprint]:
    """Read the adapter of a folder for a model, on which it is not put.

    Parameters
    ----------
    most_bytes : int
        That its files may have.

    Raises
    ------
    AdapterError
        It cannot be read, is being replaced, or needs another model.
    """
    if (folder / BASE_FOLDER).exists():
        raise AdapterError(
            f"{folder.name}: expected an adapter for the base that is served, got one with its own ({BASE_FOLDER}/); "
            "merge it, and serve the merged model"
        )
    with _copied(folder, most_bytes) as (copy, seen):
        if labels_of_adapter(copy) is not None:
            raise AdapterError(f"{folder.name}: expected an adapter that writes text, got a classifier's; use lora-c classify")
        try:
            arrays = read_adapter(copy, model.architecture, weights_of_folder)
            embedding = np.asarray(model.dense_weight("embed_tokens"), np.float32) if arrays.tokens else None
            return loaded_adapter(arrays, model.architecture, embedding, False, model.device), seen
        except ValueError as error:
            raise AdapterError(str(error).replace(str(copy), folder.name)) from None


@contextmanager
def _copied(folder: Path, most_bytes: int) -> Iterator[tuple[Path, Fingerprint]]:
    copy = Path(tempfile.mkdtemp(prefix="lora-c-adapter-"))
    try:
        for _ in range(_TRIES):
            try:
                seen = _copy(folder, copy, most_bytes)
            except OSError as error:  # no right to read it, no space for the copy
                raise AdapterError(f"{folder.name}: expected an adapter that can be copied, got: {error.strerror}") from None
            if seen is not None and _is_settled(seen) and seen == fingerprint(folder):
                yield copy, seen
                return
            time.sleep(_PAUSE)
        raise AdapterError(f"{folder.name}: expected an adapter that stays while it is read, got one that is being replaced")
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _is_settled(seen: Fingerprint) -> bool:
    age = time.time() - max(changed for *_, changed in seen) / 1e9
    return not 0 <= age < _SETTLED


def _copy(folder: Path, copy: Path, most_bytes: int) -> Fingerprint | None:
    """Copy the files; None where they changed meanwhile."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY) if FOLDERS_OPEN else None
    except OSError:
        return None
    try:
        before = _fingerprint(folder, opened)
        total = sum(size for _, _, size, *_ in before)
        if total > most_bytes:
            raise AdapterError(
                f"{folder.name}: expected an adapter of at most {most_bytes >> 20} MiB (--adapter-memory), got {total >> 20}"
            )
        for name in os.listdir(copy):
            os.unlink(copy / name)
        for name, _, size, *_ in before:
            _copy_file(folder, opened, name, copy / name, size)
        return before if before == _fingerprint(folder, opened) else None
    except FileNotFoundError:
        return None
    finally:
        if opened is not None:
            os.close(opened)


def _copy_file(folder: Path, opened: int | None, name: str, to: Path, size: int) -> None:
    source = os.open(name if opened is not None else folder / name, os.O_RDONLY | NO_WAIT | BINARY, dir_fd=opened)
    with os.fdopen(source, "rb") as file, open(to, "wb") as out:
        while size > 0 and (piece := file.read(min(size, _PIECE))):
            out.write(piece)
            size -= len(piece)


def _fingerprint(folder: Path, opened: int | None) -> Fingerprint:
    found = []
    for name in _FILES:
        try:
            s = os.stat(name if opened is not None else folder / name, dir_fd=opened)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(s.st_mode):
            found.append((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns))
    if not found:
        raise FileNotFoundError(folder)
    return tuple(found)
