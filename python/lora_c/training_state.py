"""Resumable checkpoints: the trained parameters, the optimizer's moments and the position, written atomically."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import CheckpointError
from .files import atomic_folder

if TYPE_CHECKING:
    from .trainer import Trainer

STATE_FILE = "training_state.safetensors"
POSITION_FILE = "trainer_state.json"


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    return output_dir / f"checkpoint-{step}"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = [p for p in output_dir.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit() and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))


def latest_checkpoint(output_dir: Path) -> Path | None:
    found = list_checkpoints(output_dir)
    return found[-1] if found else None


def prune_checkpoints(output_dir: Path, keep: int | None) -> None:
    """Remove the oldest beyond ``keep`` (None or 0: keep all)."""
    if keep:
        for folder in list_checkpoints(output_dir)[:-keep]:
            shutil.rmtree(folder)


def save_checkpoint(trainer: Trainer, step: int) -> Path:
    """Write checkpoint-<step>: parameters, moments, position, and for LoRA the adapter in PEFT's format."""
    from safetensors.numpy import save_file

    target = checkpoint_folder(trainer.output_dir, step)
    with atomic_folder(target, owned=lambda name: True) as folder:
        save_file(_state_tensors(trainer), folder / STATE_FILE)
        position = {"step": step, "history": trainer.history, "config": trainer.config.model_dump(mode="json")}
        (folder / POSITION_FILE).write_text(json.dumps(position), encoding="utf-8")
        if trainer.model.adapter_config is not None:
            trainer.model.save_adapter(folder)
    return target


def load_training_state(trainer: Trainer, folder: Path) -> int:
    """Restore parameters, moments and history; returns the number of steps done.

    Raises
        CheckpointError  when the folder was written for other parameters
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        position = json.loads((folder / POSITION_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / STATE_FILE)
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise CheckpointError(f"resume: expected a checkpoint folder of this trainer, got {str(folder)!r}: {error}") from None
    expected = {f"param.{p.name}": p.shape for p in trainer.parameters}
    for key, shape in expected.items():
        got = tensors.get(key)
        if got is None or got.shape != shape:
            raise CheckpointError(
                f"{folder / STATE_FILE}: expected {key} with shape {shape}, got "
                f"{'nothing' if got is None else got.shape}; resume with the options that the run was started with"
            )
    for p in trainer.parameters:
        p.data[...] = tensors[f"param.{p.name}"]
    trainer.optimizer.load_state_dict(
        {
            "step": position["step"],
            "m": [tensors[f"m.{p.name}"] for p in trainer.parameters],
            "v": [tensors[f"v.{p.name}"] for p in trainer.parameters],
        }
    )
    trainer.history = position["history"]
    return int(position["step"])


def _state_tensors(trainer: Trainer) -> dict[str, NDArray[Any]]:
    state = trainer.optimizer.state_dict()
    tensors: dict[str, NDArray[Any]] = {}
    for p, m, v in zip(trainer.parameters, state["m"], state["v"], strict=True):
        tensors[f"param.{p.name}"] = np.ascontiguousarray(p.data)
        tensors[f"m.{p.name}"] = np.ascontiguousarray(m).reshape(p.shape)
        tensors[f"v.{p.name}"] = np.ascontiguousarray(v).reshape(p.shape)
    return tensors
