"""A JSON file in which a command keeps what it has measured, so that it goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CheckpointError
from ..files.json_files import read_json_object

T = TypeVar("T")


def read_kept(path: Path, what: str, form: int, made: Callable[[Mapping[str, Any]], T]) -> T | None:
    """Read what was kept; None: there is no such file.

    Parameters
    ----------
    what : str
        Who wrote it, as an error says it: "a sweep".
    form : int
        The number of its format.
    made : callable
        Makes the record of the values.

    Raises
    ------
    CheckpointError
        The file is damaged.
    """
    if not path.exists():
        return None
    values = read_json_object(path, "remove it to begin anew")
    try:
        if values["format"] != form:
            raise ValueError(values["format"])
        return made(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path}: expected what {what} wrote, got {got}; remove it to begin anew") from None
