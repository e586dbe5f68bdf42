"""Outputs that would take the place of what somebody made: a run, an adapter, a model, a file. They need --overwrite."""

from __future__ import annotations

import os
from pathlib import Path

from ..checkpoints.written import ADAPTER_CONFIG, ADAPTER_FILE, MLX_FILE, STACK_FILE
from ..errors import ConfigError

_ADAPTER = (ADAPTER_CONFIG, ADAPTER_FILE, MLX_FILE, STACK_FILE)
_MODEL = ("config.json", "model.safetensors", "model.safetensors.index.json")


def held_by_a_folder(folder: Path) -> str | None:
    """What of worth a folder holds."""
    from ..runs.checkpoints import latest_checkpoint

    if not os.path.isdir(folder):
        return None
    checkpoint = latest_checkpoint(folder)
    if checkpoint is not None:
        return f"a run ({checkpoint.name})"
    for kind, names in (("an adapter", _ADAPTER), ("a model", _MODEL)):
        found = next((name for name in names if os.path.lexists(folder / name)), None)
        if found is not None:
            return f"{kind} ({found})"
    return None


def held_by_an_output(path: Path) -> str | None:
    """What of worth is at the place of a folder or a file."""
    if os.path.isdir(path):
        return held_by_a_folder(path)
    return "a file" if os.path.isfile(path) else None


def held_by_a_demo(folder: Path) -> str | None:
    """A demonstration may take the place of one before."""
    return None if os.path.isfile(folder / "demo.json") else held_by_a_folder(folder)


def refuse_occupied(flag: str, output: str, held: str | None, resume: str | None, can_resume: bool) -> None:
    """Refuse an output that holds something, unless the run that it holds is resumed; flag: as it is given.

    Raises
    ------
    ConfigError
        With a name that is free.
    """
    if held is None or (resume and _goes_on(Path(output), resume)):
        return
    ways = [f"{flag} {next_free(output)}"]
    if can_resume and held.startswith("a run"):
        ways.append("--resume (to go on with it)")
    raise ConfigError(
        f"{flag.lstrip('-')}: expected a place that is free, got {output!r}, which holds {held}; give {', '.join(ways)} "
        "or --overwrite"
    )


def _goes_on(output: Path, resume: str) -> bool:
    """Whether the checkpoint that is resumed lies in the output folder."""
    from ..runs.checkpoints import latest_checkpoint

    if resume in ("latest", "auto"):
        return resume == "latest" or latest_checkpoint(output) is not None
    same = os.path.realpath(os.path.dirname(os.path.abspath(resume))) == os.path.realpath(output)
    return same or not os.path.isdir(resume)  # which resuming refuses


def next_free(output: str) -> str:
    """The name with the first number behind it that nobody uses."""
    stem, ending = os.path.splitext(output.rstrip("/")) if output.endswith((".gguf", ".jsonl")) else (output.rstrip("/"), "")
    return next(name for i in range(2, 1 << 30) if not os.path.lexists(name := f"{stem}-{i}{ending}"))
