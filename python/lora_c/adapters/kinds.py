"""The kinds of adapters: what makes a new one from its configuration, and one from the arrays of a file.

What their files hold is in `config` and `peft_tensors`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..configs import (
    ADAPTER_KINDS,
    AdapterConfig,
    BottleneckConfig,
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
)
from ..errors import ConfigError
from ..families.architectures import Architecture
from ..weights.parameter_values import is_meta
from .adapter import Adapter
from .bottleneck import fresh_bottleneck, load_bottleneck
from .data import F32, AdapterArrays
from .fresh import fresh_lora
from .fresh_virtual_tokens import fresh_prefix, fresh_prompt
from .ia3 import fresh_ia3, load_ia3
from .loaded import load_arrays
from .shaped import shapes_of, shapes_of_prefix
from .virtual_tokens import load_prefix, load_prompt, prefix_of_arrays

if TYPE_CHECKING:
    from ..model.base_weights import BaseWeights

_MAKERS: dict[type[AdapterConfig], Callable[[BaseWeights, Any, str], Adapter]] = {
    LoraConfig: fresh_lora,
    IA3Config: fresh_ia3,
    BottleneckConfig: fresh_bottleneck,
    PromptTuningConfig: fresh_prompt,
    PrefixTuningConfig: fresh_prefix,
}
_LOADERS: dict[type[AdapterConfig], Callable[[AdapterArrays, Architecture, F32 | None, bool, str], Adapter]] = {
    LoraConfig: load_arrays,
    IA3Config: load_ia3,
    BottleneckConfig: load_bottleneck,
    PromptTuningConfig: load_prompt,
    PrefixTuningConfig: load_prefix,
}


def fresh_adapter(base_weights: BaseWeights, config: AdapterConfig, device: str = "cpu") -> Adapter:
    """Return an adapter of the kind that its configuration is of.

    Parameters
    ----------
    base_weights : BaseWeights
        Of the model that it is for.
    config : AdapterConfig
        Of one of the kinds.
    device : str
        Where its parameters lie.
    """
    if is_meta(device):
        return shaped_adapter(base_weights, config, device)
    return _MAKERS[type(config)](base_weights, config, device)


def shaped_adapter(base_weights: BaseWeights, config: AdapterConfig, device: str) -> Adapter:
    """Return a new adapter that has shapes and no values, on a device of such arrays.

    Parameters
    ----------
    base_weights : BaseWeights
        Of the model that it is for, which has no values either.
    config : AdapterConfig
        Of one of the kinds.
    """
    architecture = base_weights.architecture
    if isinstance(config, PrefixTuningConfig):
        return prefix_of_arrays(shapes_of_prefix(config, architecture), config, True, device)
    arrays, embedding = shapes_of(config, base_weights)
    return loaded_adapter(arrays, architecture, embedding, True, device)


def loaded_adapter(
    arrays: AdapterArrays, architecture: Architecture, embedding: F32 | None, trainable: bool, device: str
) -> Adapter:
    """Return an adapter of the kind that a file's configuration is of.

    Parameters
    ----------
    embedding : array or None
        The base's embedding, where the adapter trains rows of it.
    device : str
        Where its parameters lie.
    """
    return _LOADERS[type(arrays.config)](arrays, architecture, embedding, trainable, device)


def frozen_adapter(adapter: Adapter, architecture: Architecture, device: str) -> Adapter:
    """Return an adapter with the same values that is not trained."""
    embedding = None if adapter.tokens is None else adapter.tokens.embedding.data
    arrays = replace(adapter.arrays(), config=adapter.config)
    frozen = loaded_adapter(arrays, architecture, embedding, False, device)
    frozen.base, frozen.start = adapter.base, adapter.start
    return frozen


def config_of(options: Mapping[str, Any]) -> AdapterConfig:
    """Return the configuration that options make, of the kind that `peft_type` names; of LoRA where it names none.

    Raises
    ------
    ConfigError
        There is no such kind, or it has no such option.
    """
    rest = dict(options)
    name = rest.pop("peft_type", "LORA")
    kind = ADAPTER_KINDS.get(str(getattr(name, "value", name)).upper())
    if kind is None:
        raise ConfigError(f"peft_type: expected one of {', '.join(ADAPTER_KINDS)}, got {name!r}")
    return kind(**rest)


def check_config(config: Any) -> AdapterConfig:
    """Return what is the configuration of an adapter.

    Raises
    ------
    ConfigError
        It is something else.
    """
    if isinstance(config, tuple(ADAPTER_KINDS.values())):
        return config
    names = " or ".join(kind.__name__ for kind in ADAPTER_KINDS.values())
    raise ConfigError(f"config: expected a {names}, got {type(config).__name__}; or give its fields by keyword")
