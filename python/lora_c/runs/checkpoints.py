"""The checkpoint folders of runs: which there are, where each stands, and which are removed."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..files.json_files import read_json_object
from ..files.os_errors import reason
from ..files.paths import expand
from ..notices import tell
from .resume import Run

POSITION_FILE = "trainer_state.json"
FORMAT = 2  # of POSITION_FILE; 1 had no digests
_DAMAGED = "the checkpoint is damaged, resume from another one"
_MOST_BYTES = 4 << 30  # of POSITION_FILE, whose history has a record for each step
_NAME = re.compile(r"checkpoint-(0|[1-9]\d*)")


@dataclass
class Position:
    """What trainer_state.json says. run: None in a checkpoint of the first format."""

    folder: Path
    step: int
    history: list[dict[str, Any]]
    run: Run | None
    run_id: str
    written: list[int]  # steps of the checkpoints that this run has written
    saved_at: int


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    return output_dir / f"checkpoint-{step}"


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """The checkpoints in a folder, whatever run wrote them, by their steps."""
    try:
        folders = [p for p in output_dir.iterdir() if _NAME.fullmatch(p.name) and (p / POSITION_FILE).is_file()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{output_dir}: expected a folder with checkpoints, got: {reason(error)}") from None
    return sorted(folders, key=lambda folder: int(folder.name.rpartition("-")[2]))


def refuse_other_run(output_dir: Path, run_id: str) -> None:
    """Refuse to begin a run where another one has left checkpoints.

    Raises
    ------
    ConfigError
        With the ways out.
    """
    other = latest_checkpoint(output_dir)
    if other is not None and read_position(other).run_id != run_id:
        raise ConfigError(
            f"output_dir: expected a folder without a run, got {str(output_dir)!r}, which holds {other.name} of another one; "
            "give another folder, train(resume=True) to go on with that run, or train(overwrite=True)"
        )


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The checkpoint that was written last: one of another run may have a higher number."""
    found = []
    for folder in checkpoint_folders(output_dir):
        try:
            saved_at = read_position(folder).saved_at
        except CheckpointError:
            saved_at = (folder / POSITION_FILE).stat().st_mtime_ns  # if it is the latest, resuming says what is wrong
        found.append((saved_at, int(folder.name.rpartition("-")[2]), folder))
    return max(found)[2] if found else None


def find_checkpoint(output_dir: Path, resume: bool | str | Path) -> Path | None:
    """The checkpoint folder to go on from; None: start at step 0.

    Parameters
    ----------
    resume
        True: the latest checkpoint in the output folder. "auto": the same, and a new start where there is none. A path: that
        checkpoint. False: a new start.

    Raises
    ------
    CheckpointError
        There is nothing to resume from.
    """
    if resume is False or resume is None:
        return None
    if resume is not True and str(resume) != "auto":
        return Path(expand(resume, "resume"))
    found = latest_checkpoint(output_dir)
    if found is None and resume is True:
        raise CheckpointError(
            f"{output_dir}: expected a checkpoint to resume from, got none; start without --resume, or give --resume "
            "auto, which starts where there is none, or --resume PATH"
        )
    return found


def prune_checkpoints(
    output_dir: Path, run_id: str, written: list[int], keep: int | None, spared: int | None = None
) -> list[int]:
    """Remove all but the latest of the checkpoints that a run has written and the one of a spared step, and of these only its
    files; return those that are left."""
    if not keep:
        return written
    old = [step for step in written[:-keep] if step != spared]
    for step in old:
        folder = checkpoint_folder(output_dir, step)
        try:
            if (folder / POSITION_FILE).is_file():
                _remove_written(folder, run_id)
        except (CheckpointError, OSError) as error:
            tell(f"{folder}: an old checkpoint is not removed ({reason(error)})")
    return [step for step in written if step not in old]


def _remove_written(folder: Path, run_id: str) -> None:
    values = read_json_object(folder / POSITION_FILE, most=_MOST_BYTES)
    files = values.get("files")
    if values.get("run_id") != run_id or not isinstance(files, list) or folder.is_symlink():
        return
    # The position first: what is left after a kill is no checkpoint any more.
    parts = [Path(name) for name in files if isinstance(name, str) and name != POSITION_FILE]
    for part in (Path(POSITION_FILE), *parts):
        if not part.is_absolute() and ".." not in part.parts:
            (folder / part).unlink(missing_ok=True)
    for place in (*sorted({folder / part.parent for part in parts}, reverse=True), folder):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def read_position(folder: Path) -> Position:
    """Read where a checkpoint stands.

    Raises
    ------
    CheckpointError
        There is none, or it is damaged.
    """
    file = folder / POSITION_FILE
    if not file.is_file():
        kind = "a file" if folder.is_file() else "a folder without it" if folder.is_dir() else "nothing there"
        raise CheckpointError(
            f"{folder}: resume: expected a checkpoint folder of this trainer, with {POSITION_FILE}, got {kind}; give one "
            "named checkpoint-N"
        )
    values = read_json_object(file, _DAMAGED, most=_MOST_BYTES)

    def fail(expected: str, got: object) -> CheckpointError:
        return CheckpointError(f"{file}: expected {expected}, got {repr(got)[:60]}; {_DAMAGED}")

    if "global_step" in values and "step" not in values:
        raise CheckpointError(
            f"{folder}: expected a checkpoint of lora-c, got one of transformers, whose optimizer cannot be taken over; start "
            "without it, in another output folder"
        )
    if values.get("format", 1) not in (1, FORMAT) or isinstance(values.get("format"), bool):
        raise fail(f"format {FORMAT}", values["format"])
    step: Any = values.get("step")
    history: Any = values.get("history")
    if not _is_count(step):
        raise fail("step to be a whole number", step)
    if not isinstance(history, list) or not all(map(_is_record, history)):
        raise fail("history to be a list of records with numbers", history)
    if any(record["step"] > step for record in history):
        raise fail(f"history to end at step {step}", max(record["step"] for record in history))
    if "format" not in values:
        return Position(folder, step, history, None, "", [], file.stat().st_mtime_ns)
    run = values.get("run")
    if not isinstance(run, dict) or not isinstance(run.get("options"), dict) or not _is_count(run.get("total_steps")):
        raise fail("run to have options and total_steps", run)
    if not isinstance(run.get("data"), str) or not isinstance(run.get("model"), str):
        raise fail("run to have digests of data and model", run)
    run_id, written = values.get("run_id"), values.get("checkpoints")
    saved_at: Any = values.get("saved_at")
    if not isinstance(run_id, str) or not _is_count(saved_at):
        raise fail("run_id and saved_at", (run_id, saved_at))
    if not isinstance(written, list) or not all(map(_is_count, written)):
        raise fail("checkpoints to be a list of steps", written)
    same = Run(run["options"], run["total_steps"], run["data"], run["model"])
    return Position(folder, step, history, same, run_id, written, saved_at)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_record(record: Any) -> bool:
    """A row of the history: numbers by name, the step among them."""
    if not isinstance(record, dict) or not _is_count(record.get("step")) or not _is_count(record.get("tokens", 0)):
        return False
    return all(type(value) in (int, float) and math.isfinite(value) for value in record.values())
