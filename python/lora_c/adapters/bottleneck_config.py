"""Bottleneck adapters in files and in models: adapter_config.json, where they lie, and how large they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..configs import BottleneckConfig
from ..errors import AdapterError, ConfigError, shorten
from ..families.architectures import Architecture
from .data import PREFIX, specs_by_name

_FIELDS = {
    "mh_adapter", "output_adapter", "reduction_factor", "bottleneck_size", "non_linearity", "scaling", "init_weights",
    "leave_out", "modules_to_save",
}  # fmt: skip
_HARMLESS = {"peft_type", "task_type", "base_model_name_or_path", "inference_mode"}
PARTS = ("down.weight", "down.bias", "up.weight", "up.bias")


@dataclass(frozen=True)
class Place:
    """A bottleneck behind a projection."""

    name: str  # of the projection in the decoder: layers.N.o_proj or layers.N.down_proj
    module: str
    size: int
    hidden_size: int

    def keys(self) -> list[str]:
        """Names of its tensors in the file: down, its bias, up, its bias."""
        return [f"{PREFIX}{self.module}.bottleneck.{part}" for part in PARTS]

    def shapes(self) -> list[tuple[int, ...]]:
        """Their shapes."""
        return [(self.size, self.hidden_size), (self.size,), (self.hidden_size, self.size), (self.hidden_size,)]


def find_places(config: BottleneckConfig, architecture: Architecture) -> list[Place]:
    """Return where a configuration puts bottlenecks, in the order of the forward pass.

    Raises
    ------
    AdapterError
        It leaves out a layer that is not there, or all of them.
    """
    layers, hidden = (int(architecture.decoder_kwargs[key]) for key in ("num_hidden_layers", "hidden_size"))
    other = next((layer for layer in config.leave_out if not 0 <= layer < layers), None)
    if other is not None:
        raise AdapterError(f"leave_out: expected layers from 0 to {layers - 1}, got {other}")
    size = config.bottleneck_size or max(1, int(hidden // config.reduction_factor))
    parts = [name for name, is_set in (("o_proj", config.mh_adapter), ("down_proj", config.output_adapter)) if is_set]
    specs = specs_by_name(architecture)
    names = [f"layers.{n}.{part}" for n in range(layers) if n not in config.leave_out for part in parts]
    if not names:
        raise AdapterError(f"leave_out: expected a layer with an adapter, got all {layers} left out")
    return [Place(name, specs[name].module, size, hidden) for name in names]


def bottleneck_shapes(config: BottleneckConfig, architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The tensors of the file: full name to shape."""
    places = find_places(config, architecture)
    return {key: shape for place in places for key, shape in zip(place.keys(), place.shapes(), strict=True)}


def read_bottleneck_config(values: Mapping[str, Any], where: str) -> BottleneckConfig:
    """Turn adapter_config.json into a configuration.

    Raises
    ------
    AdapterError
        It has an unknown field, or one with a value that is not supported.
    """
    unknown = [key for key in values if key not in _FIELDS | _HARMLESS]
    if unknown:
        raise AdapterError(f"{where}: expected only {shorten(sorted(_FIELDS))}, got {shorten(unknown)}")
    given = {key: values[key] for key in _FIELDS if values.get(key) is not None}
    if "bottleneck_size" in given:
        given.pop("reduction_factor", None)
    try:
        return BottleneckConfig(**given)
    except ConfigError as error:
        raise AdapterError(f"{where}: {error}") from None


def bottleneck_file(config: BottleneckConfig, modules: Iterable[str], base_model: str | None) -> dict[str, Any]:
    """Return adapter_config.json."""
    values = config.model_dump(include=_FIELDS)
    if config.bottleneck_size is not None:
        del values["reduction_factor"]
    constants = {"peft_type": "BOTTLENECK", "task_type": "CAUSAL_LM", "inference_mode": True}
    return {**constants, "base_model_name_or_path": base_model, **values}
