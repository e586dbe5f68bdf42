"""Flags made from the fields of a config class, and the merge of flags with a YAML file: one place for names and help."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])


def flag_name(field: str) -> str:
    return "--" + field.replace("_", "-")


def config_options(*classes: type[BaseModel], skip: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Add one flag per field. A flag that is not given stays None, so that the file or the default can speak."""

    def decorate(function: F) -> F:
        fields = [(n, f) for c in classes for n, f in c.model_fields.items() if n not in skip]
        for name, info in reversed(fields):
            function = _option(name, info)(function)
        return function

    return decorate


def config_file_option(function: F) -> F:
    help_text = "YAML file whose keys are the names of the flags; a flag wins over the file."
    return click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help=help_text)(function)


def read_config_file(path: Path | None) -> dict[str, Any]:
    """The mapping in a YAML file, keys with _ or - alike."""
    if path is None:
        return {}
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config: expected a readable YAML file, got {str(path)!r}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: expected YAML in {str(path)!r}, got: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"config: expected keys and values in {str(path)!r}, got a {type(values).__name__}")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def merge_settings(file: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """File values overruled by the flags that were given."""
    return {**file, **{key: value for key, value in flags.items() if value is not None}}


def take(settings: dict[str, Any], cls: type[BaseModel], skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """Remove and return the settings that belong to a config class."""
    return {name: settings.pop(name) for name in cls.model_fields if name in settings and name not in skip}


def refuse_unknown(settings: dict[str, Any], known: list[str]) -> None:
    """Anything left over in a config file is a mistake, named with its nearest neighbour."""
    from difflib import get_close_matches

    for name in settings:
        near = get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(sorted(known))}"
        raise ConfigError(f"config: unknown key {name!r}{hint}")


def _option(name: str, info: FieldInfo) -> Callable[[F], F]:
    kind = _plain_type(info.annotation)
    shown = (
        ""
        if info.default in (None, "") or info.is_required() or isinstance(info.default, dict)
        else f"  [default: {info.default}]"
    )
    text = (info.description or "") + shown
    if kind is bool:
        return click.option(f"{flag_name(name)}/--no-{name.replace('_', '-')}", name, default=None, help=text)
    if get_origin(kind) is Literal:
        choices = [str(c) for c in get_args(kind)]
        return click.option(flag_name(name), name, type=click.Choice(choices), default=None, help=text)
    if kind is list:
        return click.option(flag_name(name), name, callback=_comma_list, default=None, metavar="A,B", help=text)
    if kind is dict:
        return click.option(flag_name(name), name, callback=_pairs, default=None, metavar="KEY=VALUE,…", help=text)
    if kind in (int, float):
        return click.option(flag_name(name), name, type=kind, default=None, help=text)
    return click.option(flag_name(name), name, type=str, default=None, metavar="TEXT", help=text)


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


def _comma_list(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Any:
    """ "a,b" is a list; a single word stays a word (it may be "all-linear" or a regular expression)."""
    if value is None or "," not in value:
        return value
    parts = [part.strip() for part in value.split(",") if part.strip()]
    return [int(p) if p.lstrip("-").isdigit() else p for p in parts]


def _pairs(_ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, float] | None:
    if value is None:
        return None
    try:
        return {k.strip(): float(v) for k, v in (pair.split("=") for pair in value.split(","))}
    except ValueError:
        raise click.BadParameter(f"expected NAME=NUMBER pairs, got {value!r}", param=param) from None
