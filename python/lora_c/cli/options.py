"""Flags made from the fields of a config class, and YAML files whose keys are the flags: one place for names and help."""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..configs import FREE_TEXTS
from ..errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])


# --- flags from config classes ---


class FieldOption(click.Option):
    """A flag that stands for a field of a config class; help lists it under the heading of that class."""

    section = ""


def flag_name(field: str) -> str:
    return "--" + field.replace("_", "-")


def config_options(cls: type[BaseModel], section: str, skip: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Add one flag per field. A flag that is not given is None, so that the class's own default speaks."""

    def decorate(function: F) -> F:
        for name, info in reversed(cls.model_fields.items()):
            if name not in skip:
                function = _option(name, info, section)(function)
        return function

    return decorate


def take(settings: dict[str, Any], cls: type[BaseModel], skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """Remove the fields of a config class from the settings and return those that were given."""
    taken = {name: settings.pop(name) for name in cls.model_fields if name in settings and name not in skip}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in taken.items() if v is not None and v != ()}


class FreeText(click.ParamType):
    """Any text as it stands, with its commas, spaces and newlines; a number from a file is none."""

    name = "TEXT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            self.fail(f"expected a text, got {value!r}; put it in quotes", param, ctx)
        return value


class TextList(click.ParamType):
    """ "a,b" is a list, and so is a single name; "all-linear" and regular expressions stay texts.

    numbers: items of digits are numbers.
    """

    name = "A,B"

    def __init__(self, numbers: bool = False) -> None:
        self.numbers = numbers

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or not ("," in value or re.fullmatch(r"[\w.]+", value)):
            return value
        parts = [part.strip() for part in value.split(",") if part.strip()]
        return [int(p) if self.numbers and re.fullmatch(r"-?[0-9]+", p) else p for p in parts]


class Literals(click.Choice):
    """The values of a Literal, which need not be texts: "true" on the command line and true in a file are True."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = {str(value).lower(): value for value in values}
        super().__init__(list(self.values), case_sensitive=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.values[super().convert(str(value).lower(), param, ctx)]


class Pairs(click.ParamType):
    """NAME=NUMBER pairs, or a mapping from a file."""

    name = "KEY=VALUE,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return {k.strip(): float(v) for k, v in (pair.split("=") for pair in value.split(","))}
        except ValueError:
            self.fail(f"expected NAME=NUMBER pairs, got {value!r}", param, ctx)


def _option(name: str, info: FieldInfo, section: str) -> Callable[[F], F]:
    kind = _plain_type(info.annotation)
    hidden_default = info.default in (None, "") or info.is_required() or isinstance(info.default, (dict, list))
    text = (info.description or "") + ("" if hidden_default else f"  [default: {info.default}]")
    if kind is bool:
        flags, type_ = f"{flag_name(name)}/--no-{name.replace('_', '-')}", click.BOOL
    elif get_origin(kind) is Literal:
        flags, type_ = flag_name(name), Literals(get_args(kind))
    elif FREE_TEXTS in info.metadata:
        flags, type_, text = flag_name(name), FreeText(), f"{text} May be given several times."
    else:
        kinds: dict[Any, Any] = {
            list: TextList(numbers=_holds(info.annotation, int)),
            dict: Pairs(),
            int: click.INT,
            float: click.FLOAT,
        }
        flags, type_ = flag_name(name), kinds.get(kind, click.STRING)

    def decorate(function: F) -> F:
        several = isinstance(type_, FreeText)
        function = click.option(flags, name, type=type_, default=None, help=text, cls=FieldOption, multiple=several)(function)
        function.__click_params__[-1].section = section  # type: ignore[attr-defined]
        return function

    return decorate


def _holds(annotation: Any, wanted: type) -> bool:
    """Whether a type stands anywhere in an annotation."""
    return annotation is wanted or any(_holds(part, wanted) for part in get_args(annotation))


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
    if origin is not None and hasattr(origin, "__metadata__"):
        return _plain_type(get_args(annotation)[0])
    if origin in (list, dict):
        return origin
    return annotation


# --- the command class: --config, and help by section ---


class Command(click.Command):
    """A command with ``--config FILE``, whose keys are the names of its flags; a flag wins over the file."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        text = "YAML file whose keys are the names of the flags; a flag wins over the file."
        path = click.Path(path_type=Path)
        self.params.append(
            click.Option(["--config"], type=path, metavar="FILE", is_eager=True, expose_value=False, callback=_read, help=text)
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, "section", "") or "Options", []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _read(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    names = {}
    for param in ctx.command.params:
        if param.expose_value and param.name:
            names |= {spelling.lstrip("-").replace("-", "_"): param.name for spelling in param.opts}
    values = read_config_file(path, list(names))
    repeated = {param.name for param in ctx.command.params if getattr(param, "multiple", False) or param.nargs == -1}
    for key, value in values.items():
        values[key] = [value] if names[key] in repeated and not isinstance(value, list) else value
    ctx.default_map = {names[key]: value for key, value in values.items()}


def read_config_file(path: Path, known: list[str]) -> dict[str, Any]:
    """The mapping in a YAML file, keys with _ or - alike; an unknown key is named with its nearest neighbour."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config: expected a readable YAML file, got {str(path)!r}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: expected YAML in {str(path)!r}, got: {' '.join(str(error).split())}") from None
    if not isinstance(values, (dict, type(None))):
        raise ConfigError(f"config: expected keys and values in {str(path)!r}, got a {type(values).__name__}")
    settings = {str(key).replace("-", "_"): value for key, value in (values or {}).items()}
    for name in settings:
        if name not in known:
            raise ConfigError(f"config: unknown key {name!r} in {str(path)!r}{_hint(name, known)}")
    return {name: value for name, value in settings.items() if value is not None}


def _hint(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(sorted(known))}"
