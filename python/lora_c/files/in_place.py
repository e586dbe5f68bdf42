"""Saves into a folder that cannot be exchanged for another: a mount point, the working directory, one in a folder not ours.

What is new is written into a hidden folder inside it. That gets a name that ends in `.ready` when it is whole: from then on
the save has happened, and `finish` moves its files to their places, now or after a kill.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .aside import IN_PLACE, name_aside, names_aside
from .system import sync

_DROPPED = ".dropped.json"  # in the hidden folder: the files of the save before that go away


def must_stay(target: Path) -> bool:
    """Whether an existing folder has to be filled where it is."""
    if not os.path.isdir(target):
        return False
    with suppress(FileNotFoundError):  # the working directory may be gone
        if Path.cwd().is_relative_to(target):
            return True
    return os.path.ismount(target) or not os.access(target.parent, os.W_OK | os.X_OK)


def move_in(target: Path, aside: Path, owned: Callable[[str], bool]) -> None:
    """Put the files of `aside`, a folder in `target`, in their places, and drop what is owned and not among them."""
    new = set(_files(aside))
    before = [name for name in _files(target) if not (target / name).is_relative_to(aside)]
    dropped = [name for name in before if owned(name) and name not in new]
    with open(aside / _DROPPED, "w", encoding="utf-8") as file:
        json.dump(dropped, file)
        file.flush()
        sync(file.fileno())
    aside.rename(name_aside(target / IN_PLACE, "ready"))
    finish(target)


def finish(target: Path) -> None:
    """Do what is left of saves that have happened. Files outside of the folder are never touched."""
    for ready in names_aside(target / IN_PLACE, "ready"):
        if ready.is_symlink() or not (ready / _DROPPED).is_file():
            continue
        dropped = json.loads((ready / _DROPPED).read_text(encoding="utf-8"))
        for name in _files(ready):
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if name != _DROPPED and _is_inside(place, target):
                with suppress(FileNotFoundError):  # another process finishes it, too
                    os.replace(ready / name, place)
        for name in dropped if isinstance(dropped, list) else []:
            if isinstance(name, str) and _is_inside(target / name, target):
                (target / name).unlink(missing_ok=True)
        with suppress(FileNotFoundError):  # what a kill leaves of it from here on is an unfinished save like any other
            shutil.rmtree(ready.rename(name_aside(target / IN_PLACE, "part")), ignore_errors=True)


def _files(folder: Path) -> list[str]:
    found = []
    for root, _, names in os.walk(folder):
        inside = os.path.relpath(root, folder).replace(os.sep, "/")
        found += [name if inside == "." else f"{inside}/{name}" for name in names]
    return found


def _is_inside(place: Path, folder: Path) -> bool:
    return Path(os.path.realpath(place.parent)).is_relative_to(os.path.realpath(folder)) and place.name not in ("", "..")
