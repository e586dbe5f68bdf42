"""Flags made from the fields of a config class, and YAML files whose keys are the flags: one place for names and help."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..configs import FREE_TEXTS, SYNONYMS
from ..errors import ConfigError
from ..model_names import expand
from .paths import (
    CONFIG_FILE,
    OVERWRITE,
    InputPath,
    InputPaths,
    OutputPath,
    ResumePath,
    check_outputs,
    output_of_a_run,
    refuse_repeated,
)
from .yaml_file import Plain, plain_value, read_settings, real_number, truth_value, whole_number

F = TypeVar("F", bound=Callable[..., Any])
_LINES = "lora_c.lines"  # key of a context's meta: where each value of the file stands


# --- flags from config classes ---


class FieldOption(click.Option):
    """A flag that stands for a field of a config class; help lists it under the heading of that class."""

    section = ""
    field_default: Any = None


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
        self.numbers = numbers  # whether its items are whole numbers

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
    numbers = True

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            pairs = [self._pair(text) for text in value.split(",")]
        except ValueError:
            self.fail(f"expected NAME=NUMBER pairs, got {value!r}", param, ctx)
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            self.fail(f"expected each name once, got {value!r}", param, ctx)
        return dict(pairs)

    def _pair(self, text: str) -> tuple[str, Any]:
        name, _, number = (part.strip() for part in text.rpartition("="))
        if not name:
            raise ValueError(text)
        real_number(number)
        return name, plain_value(Plain(number))


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
        names = TextList(numbers=_holds(info.annotation, int))
        kinds: dict[Any, Any] = {list: names, dict: Pairs(), int: click.INT, float: click.FLOAT}
        flags, type_ = flag_name(name), kinds.get(kind, click.STRING)
        type_ = output_of_a_run(info.default) if name == "output_dir" else type_  # type: ignore[assignment]

    def decorate(function: F) -> F:
        several = isinstance(type_, FreeText)
        function = click.option(flags, name, type=type_, default=None, help=text, cls=FieldOption, multiple=several)(function)
        option = function.__click_params__[-1]  # type: ignore[attr-defined]
        option.section, option.field_default = section, info.default
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


_SCALARS = (
    InputPath, OutputPath, ResumePath, click.Choice, click.types.IntParamType, click.types.FloatParamType,
    click.types.StringParamType, click.types.BoolParamType,
)  # fmt: skip


# --- the command class: --config, --overwrite, and help by section ---


class Command(click.Command):
    """A command with ``--config FILE``, whose keys are the names of its flags; a flag wins over the file.

    One that writes has ``--overwrite``, without which an output that is also an input is refused.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--config"], type=click.Path(path_type=Path), metavar="FILE", is_eager=True, expose_value=False,
                callback=_read, help="YAML file whose keys are the names of the flags; a flag wins over the file.",
            )
        )  # fmt: skip
        if any(isinstance(param.type, OutputPath) for param in self.params):
            text = "Let the output take the place of an input."
            self.params.append(
                click.Option(["--overwrite"], is_flag=True, expose_value=False, callback=_remember_overwrite, help=text)
            )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the flags; an unknown one that other programs have is answered with its name here."""
        try:
            rest = super().parse_args(ctx, list(args))
            refuse_repeated(self.make_parser(ctx).parse_args(list(args))[2])
            return rest
        except click.NoSuchOption as error:
            known = SYNONYMS.get(error.option_name.lstrip("-").replace("-", "_"))
            if known in (param.name for param in self.params):
                error.possibilities = [flag_name(str(known))]
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; an error in a value of the file names the line."""
        try:
            check_outputs(ctx, overwrite=bool(ctx.meta.get(OVERWRITE)))
            return super().invoke(ctx)
        except ConfigError as error:
            raise _with_line(error, ctx) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, "section", "") or "Options", []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _remember_overwrite(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.meta[OVERWRITE] = value


def _with_line(error: ConfigError, ctx: click.Context) -> ConfigError:
    """Say in which line of the file the value stands that a config class refuses."""
    match = re.match(r"\w+Config: (\w+)", str(error))
    if match is None or ctx.get_parameter_source(match[1]) is not click.core.ParameterSource.DEFAULT_MAP:
        return error
    where = ctx.meta.get(_LINES, {}).get(match[1])
    return ConfigError(f"{where}: {error}") if where else error


def _read(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    path = ctx.meta[CONFIG_FILE] = Path(expand(path))
    params: dict[str, click.Parameter] = {}
    for param in ctx.command.params:
        if param.name and (param.expose_value or param.name == "overwrite"):
            params |= {spelling.lstrip("-").replace("-", "_"): param for spelling in param.opts}
    values: dict[str, Any] = {}
    lines: dict[str, tuple[str, int]] = {}
    for setting in read_settings(path):
        if setting.key not in params:
            where = f"{str(path)!r}, line {setting.line}"
            raise ConfigError(f"config: unknown key {setting.key!r} in {where}{_hint(setting.key, params)}")
        param = params[setting.key]
        name = str(param.name)
        if name in lines:
            key, line = lines[name]
            raise ConfigError(f"{path}:{setting.line}: {setting.key}: expected each key once, got {key} in line {line} too")
        lines[name] = setting.key, setting.line
        default = getattr(param, "field_default", None)
        if setting.value is None and default is not None:
            raise ConfigError(
                f"{path}:{setting.line}: {setting.key}: expected a value, got nothing; leave the key out for the default "
                f"({default})"
            )
        if setting.value is not None:
            try:
                values[name] = value_of(param, setting.value, ctx)
            except (ValueError, click.UsageError) as error:
                said = error.message if isinstance(error, click.UsageError) else str(error)
                raise ConfigError(f"{path}:{setting.line}: {setting.key}: {said}") from None
    ctx.meta[_LINES] = {name: f"{path}:{line}" for name, (_, line) in lines.items() if name in values}
    ctx.default_map = values


def value_of(param: click.Parameter, value: Any, ctx: click.Context) -> Any:
    """The value that a flag has when a file gives it.

    Raises
    ------
    ValueError, click.UsageError
        It is not of the flag's type.
    """
    if isinstance(param.type, InputPaths) and isinstance(value, list):
        return [[_one_value(param, item, ctx)[0] if "," not in str(item) else str(item) for item in value]]
    if getattr(param, "multiple", False) or param.nargs == -1:
        return [_one_value(param, item, ctx) for item in (value if isinstance(value, list) else [value])]
    return _one_value(param, value, ctx)


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
    from difflib import get_close_matches

    known = sorted(known)
    near = [SYNONYMS[name]] if SYNONYMS.get(name) in known else get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
