"""The tensors in PEFT's file of an adapter of another kind than LoRA: which there must be, by the adapter's configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..checkpoints.safetensors_file import SafetensorsFile
from ..configs import AdapterConfig, BottleneckConfig, IA3Config, PrefixTuningConfig, PromptTuningConfig
from ..errors import AdapterError, shorten
from ..families.architectures import Architecture
from .bottleneck_config import bottleneck_shapes
from .data import F32
from .floats import read_floats
from .ia3_config import vector_shapes
from .virtual_tokens_config import tensor_shapes as virtual_token_shapes

Shapes = Mapping[str, tuple[int, ...]]

# Of each kind: full name of a tensor to its shape.
_SHAPES: dict[type[AdapterConfig], Callable[[Any, Architecture], Shapes]] = {
    IA3Config: vector_shapes,
    BottleneckConfig: bottleneck_shapes,
    PromptTuningConfig: virtual_token_shapes,
    PrefixTuningConfig: virtual_token_shapes,
}


def tensor_shapes(config: AdapterConfig, architecture: Architecture) -> Shapes:
    """Return what the file of an adapter must hold: full name to shape."""
    return _SHAPES[type(config)](config, architecture)


def read_tensors(file: SafetensorsFile, config: AdapterConfig, architecture: Architecture, others: set[str]) -> dict[str, F32]:
    """Read the tensors of an adapter, by their full names.

    Parameters
    ----------
    others : set of str
        Names of tensors that belong to something else than its kind: modules that are saved whole.

    Raises
    ------
    AdapterError
        A tensor is missing, has another shape, or nothing asks for it.
    """
    shapes = tensor_shapes(config, architecture)
    missing = [name for name in shapes if name not in file.tensors]
    if missing:
        raise AdapterError(
            f"{file.path}: expected the tensors that its configuration asks for, got none for {shorten(missing)}"
        )
    unknown = [name for name in file.tensors if name not in shapes and name not in others]
    if unknown:
        raise AdapterError(
            f"{file.path}: expected only what its configuration asks for, got {shorten(unknown)}; it is an adapter for "
            "another base model, or needs what is not supported"
        )
    for name, shape in shapes.items():
        if file.tensors[name].shape != shape:
            raise AdapterError(
                f"{file.path}: {name}: expected shape {shape}, got {file.tensors[name].shape}; this is an adapter for another "
                "base model"
            )
    return {name: read_floats(file, name) for name in shapes}
