"""Flags made from the fields of a config class: one place for names and help."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Collection
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..configs import FREE_TEXTS, SIZE
from .flag_names import flag_name
from .flag_types import FreeText, Literals, Pairs, Size, TextList
from .paths import output_of_a_run

F = TypeVar("F", bound=Callable[..., Any])
_ENVIRONMENT = {"precision": "LORA_C_PRECISION"}  # what stands for a flag that neither the command line nor a file gives
_WIDEST_CHOICE = 42  # characters of a choice that stands beside its flag


class FieldOption(click.Option):
    """A flag that stands for a field of a config class; help lists it under the heading of that class."""

    section, meaning = "", ""
    field_default: Any = None


def config_options(cls: type[BaseModel], section: str, skip: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Add one flag per field. A flag that is not given is None, so that the class's own default speaks."""

    def decorate(function: F) -> F:
        for name, info in reversed(cls.model_fields.items()):
            if name not in skip:
                function = field_option(name, info, section)(function)
        return function

    return decorate


def take(settings: dict[str, Any], cls: type[BaseModel], skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """Remove the fields of a config class from the settings and return those that were given."""
    taken = {name: settings.pop(name) for name in cls.model_fields if name in settings and name not in skip}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in taken.items() if v is not None and v != ()}


def field_option(name: str, info: FieldInfo, section: str, as_text: bool = False) -> Callable[[F], F]:
    """Add the flag of a field; as_text: its class alone says which values there are."""
    kind = str if as_text else _plain_type(info.annotation)
    default = default_of(info)
    hidden_default = default in (None, "", [], {})
    text = (info.description or "") + ("" if hidden_default else f"  [default: {_elsewhere(name)}{default}]")
    type_: Any
    metavar: str | None = None
    if kind is bool:
        flags, type_ = f"{flag_name(name)}/--no-{name.replace('_', '-')}", click.BOOL
    elif get_origin(kind) is Literal:
        flags, type_ = flag_name(name), Literals(get_args(kind))
        if sum(len(str(value)) + 1 for value in get_args(kind)) > _WIDEST_CHOICE:  # no line of a table holds it
            metavar, text = "NAME", f"{text} One of {', '.join(map(str, get_args(kind)))}."
    elif FREE_TEXTS in info.metadata:
        flags, type_, text = flag_name(name), FreeText(), f"{text} May be given several times."
    elif SIZE in info.metadata:
        flags, type_ = flag_name(name), Size()
    else:
        names = TextList(numbers=_holds(info.annotation, int))
        kinds: dict[Any, Any] = {list: names, dict: Pairs(_has_texts(info.annotation)), int: click.INT, float: click.FLOAT}
        flags, type_ = flag_name(name), kinds.get(kind, click.STRING)
        type_ = output_of_a_run(default) if name == "output_dir" else type_

    def decorate(function: F) -> F:
        several = isinstance(type_, FreeText)
        function = click.option(
            flags,
            name,
            type=type_,
            default=from_environment(name, get_args(kind)),
            help=text,
            cls=FieldOption,
            multiple=several,
            metavar=metavar,
        )(function)
        option = function.__click_params__[-1]  # type: ignore[attr-defined]
        option.section, option.meaning, option.field_default = section, info.description or "", default_of(info)
        return function

    return decorate


def _elsewhere(name: str) -> str:
    return f"{_ENVIRONMENT[name]} of the environment, else " if name in _ENVIRONMENT else ""


def from_environment(name: str, values: Collection[str]) -> Callable[[], str | None] | None:
    """What a flag is where nothing gives it; of a value that is none, the import of the extension tells."""
    if name not in _ENVIRONMENT:
        return None
    return lambda: found if (found := os.environ.get(_ENVIRONMENT[name])) in values else None


def default_of(info: FieldInfo) -> Any:
    """The value of a field that is not given."""
    return None if info.is_required() else info.get_default(call_default_factory=True)


def _holds(annotation: Any, wanted: type) -> bool:
    """Whether a type stands anywhere in an annotation."""
    return annotation is wanted or any(_holds(part, wanted) for part in get_args(annotation))


def _has_texts(annotation: Any) -> bool:
    """Whether values of a mapping may be texts."""
    return get_origin(annotation) is dict and _holds(get_args(annotation)[1], str)


def _plain_type(annotation: Any) -> Any:
    """The type a flag takes: None is dropped from unions; a list among the alternatives wins, then a text."""
    origin = get_origin(annotation)
    if origin is Literal:
        return annotation
    if origin in (Union, types.UnionType):
        kinds = [_plain_type(a) for a in get_args(annotation) if a is not type(None)]
        for wanted in (list, str, float, int, bool):
            if wanted in kinds:
                return wanted
        return kinds[0]
    if hasattr(annotation, "__metadata__"):
        return _plain_type(get_args(annotation)[0])
    if origin in (list, dict):
        return origin
    return annotation
