"""A folder of several adapters that are used together: each in a subfolder of its name, as PEFT saves named adapters, and
`adapter_stack.json`, which lists them in their order."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from ..checkpoints.written import ADAPTER_CONFIG, STACK_FILE, adapter_files_in
from ..errors import AdapterError, SaveError
from ..files.aside import name_for_people
from ..files.atomic import atomic_folder, recover_folder, write_json
from ..files.json_files import read_json_object

_KEY = "adapters"


def stack_names(path: str | os.PathLike[str]) -> list[str] | None:
    """Return the names of the adapters in a folder that holds a stack, in their order; None: it holds none.

    Raises
    ------
    AdapterError
        The list is damaged, or an adapter that it names is gone.
    """
    folder = recover_folder(path)
    if not os.path.isfile(folder / STACK_FILE):
        return None
    names = read_json_object(folder / STACK_FILE).get(_KEY)
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) and _is_name(name) for name in names):
        raise AdapterError(
            f"{folder / STACK_FILE}: expected a list of names, two or more, under {_KEY!r}, got {repr(names)[:80]}"
        )
    if len(set(names)) != len(names):
        raise AdapterError(f"{folder / STACK_FILE}: expected each adapter once, got {repr(names)[:80]}")
    missing = next((name for name in names if not (folder / name / ADAPTER_CONFIG).is_file()), None)
    if missing is not None:
        raise AdapterError(
            f"{folder / missing}: expected an adapter of the stack in {STACK_FILE}, got nothing there; copy the whole folder"
        )
    return names


def _is_name(name: str) -> bool:
    """Whether it can be that of a subfolder."""
    try:
        bytes_of_name = os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return name not in ("", ".", "..") and not set(name) & set("/\\\0") and len(bytes_of_name) < 256


def write_stack(path: str | os.PathLike[str], writers: Mapping[str, Callable[[Path], None]]) -> None:
    """Write the adapters of a stack, all or none of them.

    Parameters
    ----------
    writers : mapping
        The name of each, in their order, to what writes it into a folder.

    Raises
    ------
    SaveError
        The folder holds an adapter that no save of this library wrote, or a name cannot be that of a folder.
    """
    folder = Path(os.path.realpath(path))
    bad = next((name for name in writers if not _is_name(name)), None)
    if bad is not None:
        raise SaveError(f"{name_for_people(path)}: expected names of adapters that can be names of folders, got {bad!r}")
    alone = adapter_files_in(folder)
    if (folder / ADAPTER_CONFIG).exists() and ADAPTER_CONFIG not in alone:
        raise SaveError(
            f"{name_for_people(folder)}: expected a folder without an adapter of its own, got one with {ADAPTER_CONFIG}; "
            "choose another folder"
        )
    with atomic_folder(path, (files_of_stack(folder) | alone).__contains__) as aside:
        for name, write in writers.items():
            write(aside / name)
        write_json(aside / STACK_FILE, {_KEY: list(writers)})


def files_of_stack(folder: Path) -> set[str]:
    """Return the files of the stack that was saved in the folder before."""
    return {STACK_FILE} | {f"{name}/{file}" for name in _names_before(folder) for file in adapter_files_in(folder / name)}


def _names_before(folder: Path) -> list[str]:
    try:
        return stack_names(folder) or []
    except AdapterError:
        return []
