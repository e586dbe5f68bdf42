"""Files of settings (--config FILE): keys are the names of the flags, and a flag's own type reads its value."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from ..configs.other_names import meant
from ..errors import ConfigError
from ..files.paths import expand
from .flag_types import Pairs, TextList
from .paths import CONFIG_FILE, InputPath, InputPaths, OutputPath, ResumePath, needs_no_value
from .saved_settings import resolve_paths
from .yaml_file import Plain, Setting, plain_value, read_settings, real_number, truth_value, whole_number

LINES = "lora_c.lines"  # key of a context's meta: option -> where its value stands in the file, and under which name

_SCALARS = (
    InputPath, OutputPath, ResumePath, click.Choice, click.types.IntParamType, click.types.FloatParamType,
    click.types.StringParamType, click.types.BoolParamType,
)  # fmt: skip


def keys_of(param: click.Parameter) -> list[str]:
    """The names that a file may give to a parameter: those of its long flags, or of the argument."""
    long = [name for name in param.opts if name.startswith("--") or isinstance(param, click.Argument)]
    return [name.lstrip("-").replace("-", "_") for name in long]


def is_key(param: click.Parameter) -> bool:
    """Whether a file may set it."""
    return bool(param.name) and (param.expose_value or param.name in ("overwrite", "run"))


def read_into(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """Callback of --config: what the file says are the defaults of the flags.

    Raises
    ------
    ConfigError
        A key is unknown or given twice, or a value is not of the flag's type.
    """
    if path is None:
        return
    path = ctx.meta[CONFIG_FILE] = Path(expand(path))
    params: dict[str, click.Parameter] = {}
    for param in ctx.command.params:
        if is_key(param):
            params |= dict.fromkeys(keys_of(param), param)
    values: dict[str, Any] = {}
    lines: dict[str, tuple[str, int]] = {}
    for setting in read_settings(path):
        if setting.key not in params:
            if setting.key in getattr(ctx.command, "foreign_keys", set)():
                continue
            where = f"{str(path)!r}, line {setting.line}"
            raise ConfigError(f"config: unknown key {setting.key!r} in {where}{_hint(setting.key, params)}")
        param = params[setting.key]
        name = str(param.name)
        if name in lines:
            key, line = lines[name]
            raise ConfigError(f"{path}:{setting.line}: {setting.key}: expected each key once, got {key} in line {line} too")
        lines[name] = setting.key, setting.line
        value = _read_value(param, setting, ctx, f"{path}:{setting.line}: {setting.key}")
        if value is not None:
            values[name] = value
    ctx.meta[LINES] = {name: (f"{path}:{line}", key) for name, (key, line) in lines.items() if name in values}
    ctx.default_map = dict(ctx.default_map or {}) | resolve_paths(path, values, params)


def _read_value(param: click.Parameter, setting: Setting, ctx: click.Context, where: str) -> Any:
    """The value of a key; None where it is as if the key were not there."""
    default = getattr(param, "field_default", None)
    if setting.value is None and default is not None:
        raise ConfigError(f"{where}: expected a value, got nothing; leave the key out for the default ({default})")
    if setting.value is None:
        return None
    try:
        value = value_of(param, setting.value, ctx)
    except (ValueError, click.UsageError) as error:
        said = error.message if isinstance(error, click.UsageError) else str(error)
        raise ConfigError(f"{where}: {said}") from None
    return None if needs_no_value(param) and not value else value  # resume: false


def value_of(param: click.Parameter, value: Any, ctx: click.Context) -> Any:
    """The value that a flag has when a file gives it.

    Raises
    ------
    ValueError, click.UsageError
        It is not of the flag's type.
    """
    if isinstance(param.type, InputPaths) and isinstance(value, list):
        return [[path for item in value for path in _paths(param, item, ctx)]]
    if getattr(param, "multiple", False) or param.nargs == -1:
        return [_one_value(param, item, ctx) for item in (value if isinstance(value, list) else [value])]
    return _one_value(param, value, ctx)


def _paths(param: click.Parameter, item: Any, ctx: click.Context) -> list[str]:
    """What an item of a list of paths means; commas in it separate nothing."""
    return [str(item)] if "," in str(item) else list(_one_value(param, item, ctx))


def _one_value(param: click.Parameter, value: Any, ctx: click.Context) -> Any:
    kind = param.type
    if isinstance(kind, (TextList, Pairs)):
        given = value if isinstance(value, str) else plain_value(value)
        if isinstance(value, Plain) and type(plain_value(value)) in (int, float, bool) and not kind.numbers:
            raise ValueError(f"expected a text or a list of texts, got {value}; put it in quotes if it is a name")
        return kind.convert(str(given) if isinstance(given, str) else given, param, ctx)
    if not isinstance(value, str):
        if isinstance(value, list) and not isinstance(kind, _SCALARS):
            return plain_value(value)
        shown = "nothing" if value is None else "a list" if isinstance(value, list) else "a mapping"
        raise ValueError(f"expected a single value, got {shown}")
    if isinstance(param, click.Option) and param.is_flag and isinstance(kind, click.types.BoolParamType):
        return truth_value(value)
    if isinstance(kind, click.types.IntParamType):
        return whole_number(value)
    if isinstance(kind, click.types.FloatParamType):
        return real_number(value)
    if isinstance(kind, click.types.BoolParamType):
        return truth_value(value)
    return kind.convert(str(value), param, ctx)


def _hint(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    found = meant(name, known)
    return f"; did you mean {found!r}?" if found else f"; known keys: {', '.join(known)}"
