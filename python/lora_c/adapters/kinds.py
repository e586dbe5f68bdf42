"""The kinds of adapters: what makes a new one from its configuration. Their files are in `config` and `formats`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..configs import ADAPTER_KINDS, AdapterConfig, LoraConfig
from ..errors import ConfigError
from .fresh import fresh_lora
from .loaded import Adapter

if TYPE_CHECKING:
    from ..model.base_weights import BaseWeights

_MAKERS: dict[type[AdapterConfig], Callable[[BaseWeights, Any, str], Adapter]] = {LoraConfig: fresh_lora}


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
    return _MAKERS[type(config)](base_weights, config, device)


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
