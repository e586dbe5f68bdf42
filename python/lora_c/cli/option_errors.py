"""A refused option by the name that it was given: the flag on the command line, or the key with its line in the file."""

from __future__ import annotations

import re

import click

from ..errors import ConfigError
from .settings_file import LINES, keys_of

_SOURCE = click.core.ParameterSource


def as_given(error: ConfigError, ctx: click.Context) -> ConfigError:
    """The error without the name of a class of Python; the option that it is about stands as its user wrote it."""
    problems = error.problems or _option_of(str(error))
    if not problems:
        return error
    said = "; ".join(f"{_place(name, ctx)}: {text}" for name, text in problems)
    return ConfigError(said, error.problems)


def _option_of(message: str) -> tuple[tuple[str, str], ...]:
    """The option that a message begins with."""
    match = re.match(r"([A-Za-z][\w-]*): (.*)", message, re.S)
    return ((match[1], match[2]),) if match else ()


def _place(name: str, ctx: click.Context) -> str:
    option, dot, part = name.partition(".")
    key = option.replace("-", "_")
    param = next((p for p in ctx.command.params if key == p.name or key in keys_of(p)), None)
    if not isinstance(param, click.Option):
        return name
    inside = f": {part}" if dot else ""
    where = ctx.meta.get(LINES, {}).get(param.name)
    if where is not None and ctx.get_parameter_source(str(param.name)) is _SOURCE.DEFAULT_MAP:
        return f"{where[0]}: {where[1]}{inside}"
    return f"{param.opts[0]}{inside}"
