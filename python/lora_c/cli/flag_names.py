"""How flags are spelled: with dashes or underscores, and under which of their names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import click

from .paths import needs_no_value


def flag_name(field: str) -> str:
    """The flag of an option: ``learning_rate`` is ``--learning-rate``."""
    return "--" + field.replace("_", "-")


def dashed(command: click.Command, args: list[str]) -> list[str]:
    """The arguments with ``--learning_rate`` as ``--learning-rate``: the programs of transformers take both."""
    return [arg for arg, _, _ in _walk(command, args)]


def refuse_two_names(ctx: click.Context, args: list[str]) -> None:
    """One flag under two of its names is a mistake; the same name again is not: the last one counts.

    Raises
    ------
    click.UsageError
        Naming both.
    """
    seen: dict[str, str] = {}
    for _, param, name in _walk(ctx.command, args):
        if param is not None and name in param.opts:
            first = seen.setdefault(str(param.name), name)
            if first != name and not param.multiple:
                raise click.UsageError(f"{name}: expected each flag once, got {first}, which is another name of it, too", ctx)


def _walk(command: click.Command, args: list[str]) -> Iterator[tuple[str, click.Option | None, str]]:
    """Each argument with its flag in dashes, that flag, and its name; the value behind a flag is none itself."""
    options = {
        name: param
        for param in command.params
        if isinstance(param, click.Option)
        for name in (*param.opts, *param.secondary_opts)
    }
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        name = name if name in options else name.replace("_", "-")
        param = options.get(name)
        yield (arg if param is None else name + equals + value), param, name
        has_value = param is not None and not (param.is_flag or param.count or needs_no_value(param))
        if arg == "--":
            yield from ((each, None, "") for each in rest)
        elif has_value and not equals:
            yield from ((each, None, "") for each in islice(rest, 1))
