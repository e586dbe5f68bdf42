"""Adapter files of any format: which one it is, and the way in and out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from ..checkpoints.written import ADAPTER_CONFIG, ADAPTER_FILE, BASE_FOLDER, MLX_FILE, has_own_base
from ..configs import IA3Config, LoraConfig
from ..configs.adapters import kind_name
from ..errors import AdapterError, ConfigError, shorten
from ..families.architectures import Architecture
from ..files.atomic import recover_folder
from ..files.json_files import read_json_object
from ..gguf.reader import is_gguf
from . import mlx_format, peft_format
from .data import AdapterArrays

Format = Literal["peft", "mlx", "gguf"]
FORMATS: tuple[str, ...] = get_args(Format)


LoadWeights = Callable[[Path], Mapping[str, Any]]


def read_adapter(path: str | os.PathLike[str], architecture: Architecture, load_weights: LoadWeights) -> AdapterArrays:
    """Read an adapter of any known format and check it against a base model.

    Parameters
    ----------
    path : path
        A folder of PEFT or of mlx-lm, a folder that holds one named adapter in a subfolder, as PEFT saves them, or a
        GGUF file.
    architecture : Architecture
        The base model's.
    load_weights : callable
        Reads the weights of a model folder: of the base that lies beside an adapter which has changed it.

    Raises
    ------
    AdapterError
        It is not an adapter, needs what is not supported, or belongs to another base model.
    """
    if is_gguf(path):
        from . import gguf_format

        return gguf_format.read_adapter(path, architecture)
    folder = find_folder(path)
    if (folder / MLX_FILE).is_file() and not (folder / ADAPTER_FILE).is_file():
        return mlx_format.read_mlx(folder, architecture)
    arrays = peft_format.read_peft(folder, architecture)
    named = read_json_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    return (
        replace(arrays, residual_base=_base_of(folder / BASE_FOLDER, arrays, load_weights))
        if has_own_base(folder, named)
        else arrays
    )


def _base_of(folder: Path, arrays: AdapterArrays, load_weights: LoadWeights) -> dict[str, Callable[[], Any]]:
    """The adapted weights of the base that lies beside the adapter, read when the first of them is asked for."""

    @cache
    def weights() -> Mapping[str, Any]:
        return load_weights(folder)

    return {name: lambda name=name: weights()[name] for name in arrays.matrices}  # type: ignore[misc]


def find_folder(path: str | os.PathLike[str]) -> Path:
    """The folder with the files: the given one, or its only subfolder that has them (a named adapter)."""
    folder = recover_folder(path)
    if not os.path.isdir(folder):
        kind = "a file" if os.path.exists(folder) else "nothing there"
        raise AdapterError(f"{path}: expected a folder with adapter_config.json and its weights, got {kind}")
    if (folder / ADAPTER_CONFIG).exists():
        return folder
    named = sorted(entry.parent.name for entry in folder.glob(f"*/{ADAPTER_CONFIG}"))
    if len(named) > 1:
        raise AdapterError(
            f"{path}: expected one adapter, got a folder with {shorten(named)}; give {path}/{named[0]} or another of them"
        )
    return folder / named[0] if named else folder


def write_adapter(
    path: str | os.PathLike[str],
    adapter: AdapterArrays,
    architecture: Architecture,
    base_model: str | None = None,
    dtype: str = "float32",
    format: str = "peft",
    write_base: Callable[[Path], None] | None = None,
) -> None:
    """Write an adapter, atomically.

    Parameters
    ----------
    dtype : "float32", "float16" or "bfloat16"
        Stored type; training goes on from float32 without loss.
    write_base : callable, optional
        See `peft_format.write_peft`.
    """
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ConfigError(f"dtype: expected 'float32', 'float16' or 'bfloat16', got {dtype!r}")
    if format not in FORMATS:
        raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    if write_base is not None and format != "peft":
        raise AdapterError(
            f"{path}: expected an adapter for the original base, got one with a base of its own (PiSSA, OLoRA or LoftQ); save "
            "it as 'peft', which takes the base along, or merge it"
        )
    if format != "peft" and not isinstance(adapter.config, LoraConfig):
        way_out = (
            "merge it into its base, or save it as 'peft'" if isinstance(adapter.config, IA3Config) else "save it as 'peft'"
        )
        raise AdapterError(
            f"{path}: {format}: expected an adapter of LoRA, got one of {kind_name(adapter.config)}, for which it has no "
            f"place; {way_out}"
        )
    if format != "peft" and architecture.labels is not None:
        raise AdapterError(
            f"format: expected 'peft' for an adapter of a classifier, which {format} cannot hold, got {format!r}"
        )
    if format == "gguf":
        from . import gguf_format

        gguf_format.write_adapter(path, adapter, architecture, dtype)
        return
    if format == "mlx":
        mlx_format.write_mlx(path, adapter, architecture, base_model, dtype)
        return
    peft_format.write_peft(path, adapter, architecture, base_model, dtype, write_base)
