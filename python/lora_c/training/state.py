"""Resumable checkpoints: the trained parameters, the optimizer's moments and the position, written atomically."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.safetensors_file import DTYPE_NAMES, SafetensorsFile, find_non_finite
from ..checkpoints.safetensors_writer import TensorEntry, write_safetensors
from ..configs.optimizers import OPTIM_STATES
from ..errors import CheckpointError
from ..files.atomic import atomic_folder
from ..runs.checkpoints import FORMAT, POSITION_FILE, Position, checkpoint_folder, find_checkpoint, read_position
from ..runs.resume import check_same_run
from ..weights.parameter_values import set_values
from .run_settings import check_same_parameters
from .skipped_steps import count_skipped

if TYPE_CHECKING:
    from .._core import Parameter
    from .optimizers import Optimizer
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
    trainer.came_from = None if same_place else folder.parent
    trainer.run_id, trainer.checkpoints = position.run_id or trainer.run_id, position.written if same_place else []
    trainer.resumed_at = position.step
    return position.step


def load_training_state(trainer: Trainer, position: Position) -> None:
    """Restore parameters, moments and history; nothing changes unless all of it fits.

    Raises
    ------
    CheckpointError
        The folder is damaged, or was written for other parameters or another optimizer.
    """
    _check_optimizer(trainer, position)
    file = _open_state(trainer, position)
    for key in file.tensors:
        _check_values(file, key)
    for i, p in enumerate(trainer.parameters):
        for name in trainer.optimizer.moment_names:
            if (key := f"{name}.{p.name}") in file.tensors:
                trainer.optimizer.set_moment(i, name, file.read(key))
                file.release(key)
        set_values(p, file.read(f"param.{p.name}"))
        file.release(f"param.{p.name}")
    trainer.optimizer.set_step_count(position.step - count_skipped(position.history))
    file.close()
    trainer.history = position.history


def load_parameters(trainer: Trainer, position: Position) -> None:
    """Give the trained parameters the values of a checkpoint; the optimizer and the history stay.

    Raises
    ------
    CheckpointError
        The folder is damaged, or was written for other parameters.
    """
    file = _open_state(trainer, position)
    names = [f"param.{p.name}" for p in trainer.parameters]
    for name in names:
        _check_values(file, name)
    for p, name in zip(trainer.parameters, names, strict=True):
        set_values(p, file.read(name))
        file.release(name)
    file.close()


def _check_optimizer(trainer: Trainer, position: Position) -> None:
    """Refuse the state of another optimizer by its name, whatever changes are allowed."""
    before = position.run.options.get("optim", "adamw_torch") if position.run is not None else "adamw_torch"
    now = trainer.config.optim
    if OPTIM_STATES.get(before, before) != OPTIM_STATES[now]:
        raise CheckpointError(
            f"{position.folder}: expected the state of optim {now}, got one of {before}; resume with optim {before}, or "
            "start again"
        )


def _open_state(trainer: Trainer, position: Position) -> SafetensorsFile:
    path = position.folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: expected this file of the checkpoint, got nothing there; resume from another one")
    file = SafetensorsFile(path)
    expected = {entry.name: (DTYPE_NAMES[entry.dtype], entry.shape) for entry in _state_entries(trainer)}
    if position.run is not None and file.metadata != {"step": str(position.step), "run_id": position.run_id}:
        raise CheckpointError(
            f"{path}: expected the state of step {position.step} of run {position.run_id}, got {file.metadata}; the "
            "checkpoint is damaged, resume from another one"
        )
    for key in sorted(file.tensors.keys() | expected.keys()):
        got, wanted = file.tensors.get(key), expected.get(key)
        if got is None or wanted is None or (got.dtype, got.shape) != wanted:
            described = "nothing" if got is None else f"{got.dtype} {got.shape}"
            said = f"{key} as {wanted[0]} {wanted[1]}" if wanted is not None else f"no tensor {key}"
            raise CheckpointError(
                f"{path}: expected {said}, got {described}; resume with the options that the run was started with"
            )
    return file


def _check_values(file: SafetensorsFile, key: str) -> None:
    array = file.read(key)
    name = key.partition(".")[0]
    if array.dtype != np.uint8:
        bad = find_non_finite(array)
        if bad or (name not in ("param", "m") and (array < 0).any()):
            got = bad[1] if bad else float(array.min())
            rule = "finite numbers" if name in ("param", "m") else f"finite numbers ({name}: none below 0)"
            raise CheckpointError(f"{file.path}: {key}: expected {rule}, got {got}; it is damaged")
    file.release(key)


def is_finite(trainer: Trainer) -> bool:
    """Whether the state that a checkpoint would hold is finite."""
    floats = (entry for entry in _state_entries(trainer) if entry.dtype == np.float32)
    return all(find_non_finite(entry.load()) is None for entry in floats)


def _state_entries(trainer: Trainer) -> list[TensorEntry]:
    """Each is read when its turn has come: a state may be larger than the memory."""
    optimizer = trainer.optimizer
    entries = []
    for i, p in enumerate(trainer.parameters):
        entries.append(TensorEntry(f"param.{p.name}", np.dtype(np.float32), p.shape, partial(_data_of, p)))
        for name in optimizer.moment_names:
            if (shape := optimizer.moment_shape(i, name)) is not None:
                dtype = np.dtype(np.uint8 if name.endswith("_codes") else np.float32)
                entries.append(TensorEntry(f"{name}.{p.name}", dtype, shape, partial(_moment_of, optimizer, i, name)))
    return entries


def _data_of(parameter: Parameter) -> NDArray[np.float32]:
    return np.ascontiguousarray(parameter.data).reshape(parameter.shape)


def _moment_of(optimizer: Optimizer, index: int, name: str) -> NDArray[Any]:
    array = optimizer.moment(index, name)
    assert array is not None  # it has a shape
    return array
