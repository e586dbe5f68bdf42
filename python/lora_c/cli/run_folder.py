"""`--run DIR`: the folder of a run stands for its base model and its adapter."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..configs import QUANT_TYPES
from ..errors import CheckpointError
from .paths import RunPath

F = TypeVar("F", bound=Callable[..., Any])
# Keys of a context's meta: how the run quantized its base, and where that is.
_QUANTIZATION, _BASE = "lora_c.quantization", "lora_c.base"


def run_option(function: F) -> F:
    """Add `--run DIR`; what it stands for are defaults, so that --model and --adapter win over it."""
    help = "Folder of a run: its base model with its adapter; --model says where the base is, if it has moved."
    return click.option("--run", type=RunPath(), is_eager=True, expose_value=False, callback=_take_run, help=help)(function)


def has_run_option() -> bool:
    """Whether the command that runs takes --run."""
    ctx = click.get_current_context(silent=True)
    return ctx is not None and any(param.name == "run" for param in ctx.command.params)


def quantization_of_run() -> dict[str, Any]:
    """How the base of --run was quantized, for `load_model`."""
    ctx = click.get_current_context(silent=True)
    return dict(ctx.meta.get(_QUANTIZATION, {})) if ctx is not None else {}


def _take_run(ctx: click.Context, _param: click.Parameter, run: str | None) -> None:
    if not run:
        return
    model, adapter, quantization = parts_of_run(Path(run))
    known = {param.name for param in ctx.command.params}
    values: dict[str, Any] = {"model": model}
    ctx.meta[_BASE] = model
    if adapter is not None:
        values |= {"adapter": adapter} if "adapter" in known else {"adapters": [adapter]}
    if quantization and "quantize" in known:  # the model that was trained
        values["quantize"], ctx.meta[_QUANTIZATION] = quantization["quantize"], quantization
    ctx.default_map = values | dict(ctx.default_map or {})


def check_base_of_run(model: str) -> None:
    """Refuse the base of --run where it is not there any more.

    Raises
    ------
    CheckpointError
        With the way out.
    """
    ctx = click.get_current_context(silent=True)
    named = ctx.meta.get(_BASE) if ctx is not None else None
    if named == model and os.path.isabs(model) and not os.path.exists(model):
        raise CheckpointError(f"run: expected its base model in {model!r}, got nothing there; say with --model where it is")


def parts_of_run(run: Path) -> tuple[str, str | None, dict[str, Any]]:
    """Base model, adapter, and how the base was quantized in training.

    Raises
    ------
    CheckpointError
        The folder is no run's.
    """
    from ..checkpoints.written import ADAPTER_CONFIG, STACK_FILE
    from ..runs.checkpoints import latest_checkpoint
    from ..runs.record import find_moved, read_run

    folder = run
    if run.is_dir() and not any((run / name).is_file() for name in (ADAPTER_CONFIG, STACK_FILE, "config.json")):
        folder = latest_checkpoint(run) or run  # stopped before its end
    if not any((folder / name).is_file() for name in (ADAPTER_CONFIG, STACK_FILE)):
        if (folder / "config.json").is_file():
            return str(folder), None, {}
        got = "one without" if run.is_dir() else "a file" if run.exists() else "nothing there"
        raise CheckpointError(f"run: expected the folder of a run with its adapter or model, got {str(run)!r}: {got}")
    base = (read_run(folder) or {}).get("base")
    if isinstance(base, dict) and isinstance(base.get("path"), str):
        keys = ("quantize", "block_size", "double_quant") if base.get("quantize") in QUANT_TYPES else ()
        return find_moved(base["path"], run), str(folder), {key: base[key] for key in keys if key in base}
    return _named_base(folder), str(folder), {}


def _named_base(folder: Path) -> str:
    from ..adapters.stack_folder import stack_names
    from ..checkpoints.written import ADAPTER_CONFIG
    from ..files.json_files import read_json_object

    names = stack_names(folder)
    folder = folder / names[0] if names else folder
    values = read_json_object(folder / ADAPTER_CONFIG)
    named = values.get("base_model_name_or_path") or values.get("model")
    if not isinstance(named, str) or not named:
        raise CheckpointError(f"run: expected {str(folder)!r} to name its base model, got none; give --model PATH")
    return named
