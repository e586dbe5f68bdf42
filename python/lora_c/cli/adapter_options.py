"""Flags of adapters of every kind: which one is --peft-type, and an option that the kind has not is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from pydantic.fields import FieldInfo

from ..configs import ADAPTER_KINDS, AdapterConfig
from ..errors import ConfigError
from .flags import field_option

F = TypeVar("F", bound=Callable[..., Any])
_DEFAULT = "LORA"
_OF_THE_RUN = ("seed", "task_type")  # --seed is the run's, --task-type the model's


def _fields() -> dict[str, tuple[str, FieldInfo]]:
    """Every option of every kind, once: the first kind that has it, and the field there."""
    found: dict[str, tuple[str, FieldInfo]] = {}
    for kind, cls in ADAPTER_KINDS.items():
        for name, info in cls.model_fields.items():
            if name not in _OF_THE_RUN:
                found.setdefault(name, (kind, info))
    return found


def _is_ambiguous(name: str) -> bool:
    """Whether kinds have options of one name with different values."""
    types = {str(cls.model_fields[name].annotation) for cls in ADAPTER_KINDS.values() if name in cls.model_fields}
    return len(types) > 1


def adapter_options(function: F) -> F:
    """Add --peft-type and one flag for each option of an adapter of any kind."""
    for name, (kind, info) in reversed(_fields().items()):
        section = "Adapter" if kind == _DEFAULT else f"Adapter of peft_type {kind}"
        as_text = _is_ambiguous(name) and kind != _DEFAULT
        function = field_option(name, info, section, as_text=as_text)(function)
    return click.option(
        "--peft-type", type=click.Choice(list(ADAPTER_KINDS), case_sensitive=False), default=None, metavar="KIND",
        help=f"The kind of adapter: {', '.join(ADAPTER_KINDS)}.  [default: {_DEFAULT}]",
    )(function)  # fmt: skip


def take_adapter(settings: dict[str, Any], seed: int) -> AdapterConfig:
    """Remove the options of adapters from the settings and return the configuration that they make.

    Parameters
    ----------
    seed : int
        That of the run.

    Raises
    ------
    ConfigError
        An option is another kind's, or its value does not fit.
    """
    kind = settings.pop("peft_type", None) or _DEFAULT
    cls = ADAPTER_KINDS[str(kind).upper()]
    taken = {name: settings.pop(name) for name in _fields() if name in settings}
    given = {name: list(v) if isinstance(v, tuple) else v for name, v in taken.items() if v is not None and v != ()}
    other = next((name for name in given if name not in cls.model_fields), None)
    if other is not None:
        kinds = " or ".join(name for name, known in ADAPTER_KINDS.items() if other in known.model_fields)
        raise ConfigError(f"{other}: expected peft_type {kinds}, which has this option, got {kind}; leave it out")
    return cls(**given, **({"seed": seed} if "seed" in cls.model_fields else {}))
