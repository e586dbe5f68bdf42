"""Flags of adapters of every kind: which one is --peft-type, and an option that the kind has not is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from pydantic.fields import FieldInfo

from ..configs import ADAPTER_KINDS, AdapterConfig, StackConfig
from ..errors import ConfigError, nearest
from .flag_types import TextList
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


def adapter_fields(function: F) -> F:
    """Add one flag for each option of an adapter of any kind."""
    for name, (kind, info) in reversed(_fields().items()):
        section = "Adapter" if kind == _DEFAULT else f"Adapter of peft_type {kind}"
        as_text = _is_ambiguous(name) and kind != _DEFAULT
        function = field_option(name, info, section, as_text=as_text)(function)
    return function


def adapter_options(function: F) -> F:
    """Add --peft-type and the options of adapters."""
    return click.option(
        "--peft-type", type=TextList(), default=None, metavar="KIND,...",
        help=f"The kind of adapter: {', '.join(ADAPTER_KINDS)}; several are trained together.  [default: {_DEFAULT}]",
    )(adapter_fields(function))  # fmt: skip


def take_adapter_values(settings: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of adapters from the settings and return those that were given."""
    taken = {name: settings.pop(name) for name in _fields() if name in settings}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in taken.items() if v is not None and v != ()}


def take_adapter(settings: dict[str, Any], seed: int) -> AdapterConfig | StackConfig:
    """Remove the options of adapters from the settings and return the configuration that they make.

    Of several kinds a stack, whose adapters have their kinds' names; an option goes to every kind that has it.

    Parameters
    ----------
    seed : int
        That of the run.

    Raises
    ------
    ConfigError
        There is no such kind, an option is another kind's, or its value does not fit.
    """
    kinds = kinds_named(settings.pop("peft_type", None) or [_DEFAULT])
    given = take_adapter_values(settings)
    other = next((name for name in given if not any(name in ADAPTER_KINDS[kind].model_fields for kind in kinds)), None)
    if other is not None:
        have = " or ".join(name for name, known in ADAPTER_KINDS.items() if other in known.model_fields)
        raise ConfigError(f"{other}: expected peft_type {have}, which has this option, got {','.join(kinds)}; leave it out")
    made = {kind: _made(ADAPTER_KINDS[kind], given, seed) for kind in kinds}
    return next(iter(made.values())) if len(made) == 1 else StackConfig(adapters={k.lower(): c for k, c in made.items()})


def refuse_adapter_options(settings: Mapping[str, Any]) -> None:
    """Refuse options of a new adapter where a run goes on from one.

    Raises
    ------
    ConfigError
        Naming the option.
    """
    given = [name for name in ("peft_type", *_fields()) if settings.get(name) not in (None, ())]
    if given:
        raise ConfigError(f"{given[0]}: expected no adapter to go on from, whose own options hold, got one; leave it out")


def kinds_named(given: str | list[str]) -> list[str]:
    """The names of kinds, each once."""
    names = [str(name).strip().upper().replace("-", "_") for name in ([given] if isinstance(given, str) else given)]
    wrong = next((name for name in names if name not in ADAPTER_KINDS), None)
    if wrong is not None:
        raise ConfigError(f"peft_type: expected {', '.join(ADAPTER_KINDS)}, got {wrong!r}{nearest(wrong, ADAPTER_KINDS)}")
    if len(set(names)) != len(names):
        raise ConfigError(f"peft_type: expected each kind once, got {','.join(names)}")
    return names


def _made(cls: type[AdapterConfig], given: dict[str, Any], seed: int) -> AdapterConfig:
    own = {name: value for name, value in given.items() if name in cls.model_fields}
    return cls(**own, **({"seed": seed} if "seed" in cls.model_fields else {}))
