"""``lora-c train --print-config``: a file of settings to begin with, every key with its meaning and its default."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import click

from .flags import FieldOption
from .paths import OVERWRITE
from .settings_file import is_key, keys_of

_WIDTH = 100
_REQUESTED = "lora_c.print_config"
_HEAD = """# Settings of lora-c {name}; start with:  lora-c {name} --config THIS_FILE
# A line "#name: value" shows a default: remove the # and change the value. A flag wins over this file.
"""
_PLACES = {"model": "path/to/model", "data": ["path/to/data.jsonl"]}


def print_config_option(function: Any) -> Any:
    """Add ``--print-config`` to a command."""
    text = "Print a file of settings for --config, with every key, its meaning and its default, and stop."
    return click.option("--print-config", is_flag=True, expose_value=False, callback=_remember, help=text)(function)


def _remember(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.meta[_REQUESTED] = value


def is_requested(ctx: click.Context) -> bool:
    """Whether the flag was given."""
    return bool(ctx.meta.get(_REQUESTED))


def settings_text(ctx: click.Context, sections: dict[str, list[click.Parameter]]) -> str:
    """The file: the main flags and what was given as settings, everything else as comments.

    Parameters
    ----------
    sections : dict
        The parameters of the command by the headings of its help, the main ones first.
    """
    lines = [_HEAD.format(name=ctx.command.name)]
    for number, (title, params) in enumerate(sections.items()):
        known = [param for param in params if isinstance(param, click.Option) and is_key(param)]
        if known:
            lines.append(f"# ---- {title.lower()} ----\n")
        for param in known:
            lines += [*_comment(param), _setting(ctx, param, is_main=number == 0), ""]
    return "\n".join(lines)


def _comment(param: click.Option) -> Iterator[str]:
    text = param.meaning if isinstance(param, FieldOption) else param.help or ""
    if isinstance(param.type, click.Choice):
        text += f" One of: {', '.join(map(str, param.type.choices))}."
    second = [key for key in keys_of(param) if key != key_of(param)]
    text += f" Also called {', '.join(second)}." if second else ""
    yield from (f"# {line}" for line in textwrap.wrap(text, _WIDTH - 2, break_long_words=False, break_on_hyphens=False))


def key_of(param: click.Option) -> str:
    """The name of an option in a file: its own, as far as a flag has it."""
    keys = keys_of(param)
    return str(param.name) if param.name in keys else keys[0]


def _setting(ctx: click.Context, param: click.Option, is_main: bool) -> str:
    name, key = str(param.name), key_of(param)
    source = click.core.ParameterSource
    if ctx.get_parameter_source(name) in (source.COMMANDLINE, source.DEFAULT_MAP):
        return _line(key, ctx.params[name] if name in ctx.params else bool(ctx.meta.get(OVERWRITE)))
    default = param.field_default if isinstance(param, FieldOption) else _default(ctx, param)
    return _line(key, default) if is_main else "#" + _line(key, default)


def _default(ctx: click.Context, param: click.Option) -> Any:
    """What a flag that was not given stands for; of the paths that a run needs, what to replace."""
    name = str(param.name)
    value = _PLACES.get(name, ctx.params.get(name))
    return False if param.is_flag and value is None else value


def _line(name: str, value: Any) -> str:
    import yaml

    if value is None:
        return f"{name}:"
    value = list(value) if isinstance(value, tuple) else value
    shown = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1 << 20).removesuffix("...\n").strip()
    return f"{name}: {shown}"
