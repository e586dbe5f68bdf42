"""What people name a model or an adapter by: a path, the base that ships, or a name on the Hugging Face Hub.

A path that is there always wins; "demo" is the base that ships; `owner/name` is looked up by `hub`. What is none of
these stays as it was given, and the reader of it says what it expected.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError
from ..files.paths import expand

BASE_MODEL = Path(__file__).parents[1] / "base_model"
DEMO = "demo"
_PART = r"(?!\.)[\w.-]{1,96}(?<![.-])"
_HUB_NAME = re.compile(rf"(?P<owner>{_PART})/(?P<name>{_PART})", re.ASCII)
_SNAPSHOT = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")
_FILE_ENDINGS = (".gguf", ".safetensors", ".json", ".bin", ".pt")


def is_hub_name(name: str) -> bool:
    """Whether a text can be the name of a repository on the Hub, and is no path that is there."""
    match = _HUB_NAME.fullmatch(name)
    return match is not None and not name.endswith(_FILE_ENDINGS) and not os.path.lexists(name)


def find(
    name: Any, kind: Literal["model", "adapter"] = "model", revision: str | None = None, progress: bool | None = None
) -> str:
    """The path of a model or an adapter; the files of a name on the Hub are brought here when they are not yet.

    Parameters
    ----------
    name : str or path
        A path, "demo", or `owner/name`.
    kind : "model" or "adapter"
        Which files are needed.
    revision : str, optional
        Branch, tag or commit of a name on the Hub.
    progress : bool, optional
        Show the bar of a download; by default only on a terminal.

    Raises
    ------
    ConfigError
        `name` is no path, or `revision` was given with one.
    CheckpointError or AdapterError
        The Hub does not have it, or cannot be reached and it is not in the cache.
    """
    path = expand(name, kind)
    if is_hub_name(path):
        from . import hub

        return hub.snapshot(path, kind, revision, progress)
    if revision is not None:
        raise ConfigError(f"revision: expected none with a path, got {revision!r} with {path!r}; it is for names on the Hub")
    return place(path) if kind == "model" else path


def place(name: str) -> str:
    """Where a model of this name lies, if that is known without asking the Hub."""
    return str(BASE_MODEL) if name == DEMO and not os.path.lexists(name) else name


def name_for_others(source: Path) -> str:
    """How a file names this model so that it is found elsewhere: by its name on the Hub where it came from there."""
    match = _SNAPSHOT.fullmatch(source.parent.parent.name) if source.parent.name == "snapshots" else None
    return f"{match['owner']}/{match['name']}" if match else str(source)
