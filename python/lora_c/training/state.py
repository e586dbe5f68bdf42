"""Resumable checkpoints: the trained parameters, the optimizer's moments and the position, written atomically."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.safetensors_file import SafetensorsFile, find_non_finite
from ..checkpoints.safetensors_writer import TensorEntry, write_safetensors
from ..errors import CheckpointError
from ..files.atomic import atomic_folder
from ..runs.checkpoints import FORMAT, POSITION_FILE, Position, checkpoint_folder, find_checkpoint, read_position
from ..runs.resume import check_same_run
from ..weights.parameter_values import set_values
from .run_settings import check_same_parameters
from .skipped_steps import count_skipped

if TYPE_CHECKING:
    from .trainer import Trainer

STATE_FILE = "training_state.safetensors"


def save_checkpoint(trainer: Trainer, step: int) -> Path:
    """Write checkpoint-<step>: parameters, moments, position, and for LoRA the adapter in PEFT's format.

    Raises
    ------
    SaveError
        It cannot be written.
    """
    target = checkpoint_folder(trainer.output_dir, step)
    written = [*(s for s in trainer.checkpoints if s != step), step]
    position = {
        "format": FORMAT, "step": step, "run_id": trainer.run_id, "checkpoints": written, "saved_at": time.time_ns(),
        "config": trainer.config.model_dump(mode="json"), "run": trainer.run().as_dict(), "history": trainer.history,
    }  # fmt: skip
    with atomic_folder(target) as folder:
        if trainer.model.adapter_config is not None:
            trainer.model.save_adapter(folder)
        with open(folder / STATE_FILE, "wb") as file:
            write_safetensors(file.write, _state_entries(trainer), {"step": str(step), "run_id": trainer.run_id})
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        (folder / POSITION_FILE).write_text(json.dumps(position | {"files": [*files, POSITION_FILE]}), encoding="utf-8")
    trainer.checkpoints = written
    return target


def take_up(trainer: Trainer, resume: bool | str | Path, allow_changes: bool) -> int:
    """Put a trainer where a checkpoint stands and return the number of steps that it has done; 0 where there is none."""
    check_same_parameters(trainer.model, trainer.parameters)
    folder = find_checkpoint(trainer.output_dir, resume)
    if folder is None:
        return 0
    position = read_position(folder)
    check_same_run(trainer.run(), position, allow_changes)
    load_training_state(trainer, position)
    same_place = folder.resolve().parent == trainer.output_dir.resolve()
    trainer.run_id, trainer.checkpoints = position.run_id or trainer.run_id, position.written if same_place else []
    trainer.resumed_at = position.step
    return position.step


def load_training_state(trainer: Trainer, position: Position) -> None:
    """Restore parameters, moments and history; nothing changes unless all of it fits.

    Raises
    ------
    CheckpointError
        The folder is damaged, or was written for other parameters.
    """
    tensors = _read_tensors(trainer, position)
    names = [p.name for p in trainer.parameters]
    skipped = count_skipped(position.history)
    state = {"step": position.step - skipped, "m": [tensors[f"m.{n}"] for n in names], "v": [tensors[f"v.{n}"] for n in names]}
    try:
        trainer.optimizer.load_state_dict(state)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{position.folder / STATE_FILE}: expected moments of this optimizer, got: {error}; the checkpoint is damaged"
        ) from None
    for p in trainer.parameters:
        set_values(p, tensors[f"param.{p.name}"])
    trainer.history = position.history


def load_parameters(trainer: Trainer, position: Position) -> None:
    """Give the trained parameters the values of a checkpoint; the optimizer and the history stay.

    Raises
    ------
    CheckpointError
        The folder is damaged, or was written for other parameters.
    """
    tensors = _read_tensors(trainer, position)
    for p in trainer.parameters:
        set_values(p, tensors[f"param.{p.name}"])


def _read_tensors(trainer: Trainer, position: Position) -> dict[str, NDArray[np.float32]]:
    path = position.folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: expected this file of the checkpoint, got nothing there; resume from another one")
    file = SafetensorsFile(path)
    expected = {f"{part}.{p.name}": p.shape for p in trainer.parameters for part in ("param", "m", "v")}
    if position.run is not None and file.metadata != {"step": str(position.step), "run_id": position.run_id}:
        raise CheckpointError(
            f"{path}: expected the state of step {position.step} of run {position.run_id}, got {file.metadata}; the "
            "checkpoint is damaged, resume from another one"
        )
    for key in sorted(file.tensors.keys() | expected.keys()):
        got, shape = file.tensors.get(key), expected.get(key)
        if got is None or got.shape != shape or got.dtype != "F32":
            described = "nothing" if got is None else f"{got.dtype} {got.shape}"
            wanted = f"{key} as F32 {shape}" if shape is not None else f"no tensor {key}"
            raise CheckpointError(
                f"{path}: expected {wanted}, got {described}; resume with the options that the run was started with"
            )
    tensors = {key: np.array(file.read(key)) for key in expected}
    file.close()
    for key, array in tensors.items():
        bad = find_non_finite(array)
        if bad or (key.startswith("v.") and (array < 0).any()):
            got_value = bad[1] if bad else float(array.min())
            raise CheckpointError(f"{path}: {key}: expected finite numbers (v: none below 0), got {got_value}; it is damaged")
    return tensors


def is_finite(trainer: Trainer) -> bool:
    """Whether the state that a checkpoint would hold is finite."""
    return all(find_non_finite(entry.load()) is None for entry in _state_entries(trainer))


def _state_entries(trainer: Trainer) -> list[TensorEntry]:
    state = trainer.optimizer.state_dict()
    entries = []
    for p, m, v in zip(trainer.parameters, state["m"], state["v"], strict=True):
        for part, array in (("param", p.data), ("m", m), ("v", v)):
            entries.append(TensorEntry.of(f"{part}.{p.name}", np.ascontiguousarray(array).reshape(p.shape)))
    return entries
