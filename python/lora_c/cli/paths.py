"""Paths on the command line: which options name inputs, which name outputs, and that no output takes the place of an input."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..checkpoints.model_names import place
from ..checkpoints.written import ADAPTER_CONFIG, BASE_FOLDER, is_adapter_file, is_model_file
from ..errors import ConfigError
from ..files.paths import expand
from ..text.template_files import TEMPLATE_FILE
from .occupied import held_by_a_demo, held_by_an_output, refuse_occupied

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# Keys of a context's meta: whether --overwrite was given, and the file of --config.
OVERWRITE, CONFIG_FILE = "lora_c.overwrite", "lora_c.config"
_SPLIT = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf")
_READ_FOLDERS = (BASE_FOLDER, "additional_chat_templates")  # of a model or an adapter, besides the files in it


class PathType(click.ParamType):  # type: ignore[type-arg]
    """The name of a file or folder, which a shell can complete."""

    name = "PATH"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


class InputPath(PathType):
    """A file or folder that is read."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):  # empty: a shell variable that was never set
            self.fail(f"expected a path, got {value!r}", param, ctx)
        return expand(value)


class InputPaths(InputPath):
    """Several: the flag given again, paths with commas between them, a pattern. A path that exists as it is given is one."""

    name = "PATH[,PATH]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, (list, tuple)):
            return [path for item in value for path in _expanded(super(InputPaths, self).convert(item, param, ctx))]
        path = super().convert(value, param, ctx)
        if "," not in path or os.path.lexists(path):
            return _expanded(path)
        return [file for part in path.split(",") if part.strip() for file in _expanded(expand(part.strip()))]


def _expanded(path: str) -> list[str]:
    """The paths that a pattern means which no shell has expanded."""
    if not any(sign in path for sign in "*?["):
        return [path]
    from ..data.globs import expand_pattern

    return expand_pattern(path)


class RunPath(click.ParamType):  # type: ignore[type-arg]
    """The folder of a run, which stands for what its files name."""

    name = "DIR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
            self.fail(f"expected the folder of a run, got {value!r}", param, ctx)
        return expand(value)


class ResumePath(PathType):
    """A checkpoint folder, "auto" or "latest"; true (in a file) is "latest", false is nothing."""

    name = "[auto|CHECKPOINT]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        known = {"true": "latest", "yes": "latest", "false": None, "no": None}
        if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
            self.fail(f"expected auto or a checkpoint folder, got {value!r}", param, ctx)
        return known.get(os.fspath(value), expand(value))


class BaselinePath(InputPath):
    """An adapter folder; True for "base", the model without one. A file of settings may say true and false, too."""

    name = "[base|ADAPTER]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        known = {True: True, "base": True, "true": True, "yes": True, "false": None, "no": None}
        return known[value] if value in known else super().convert(value, param, ctx)


def with_repeated_flags(args: Sequence[str], params: Sequence[click.Parameter]) -> list[str]:
    """Arguments in which "--data a b" is "--data a --data b": what a shell makes of a pattern that is not in quotes.

    Only where a command has no arguments of its own, so that a word without a flag is nothing else.
    """
    flags = {flag for param in params if isinstance(param.type, InputPaths) for flag in param.opts}
    if any(isinstance(param, click.Argument) for param in params):
        return list(args)
    spread: list[str] = []
    flag, has_path = "", False
    for i, arg in enumerate(args):
        if arg == "--":
            return spread + list(args[i:])
        if arg.startswith("-") and arg != "-":
            name, equals, _ = arg.partition("=")
            flag, has_path = (name, bool(equals)) if name in flags else ("", False)
        elif flag and has_path:
            spread.append(flag)
        else:
            has_path = bool(flag)
        spread.append(arg)
    return spread


def needs_no_value(param: click.Parameter) -> bool:
    """Whether it may stand alone, and a word behind it is its value where it is none of a flag's."""
    return isinstance(param.type, (ResumePath, BaselinePath))


def flatten(_ctx: click.Context, _param: click.Parameter, values: Any) -> list[str] | None:
    """All paths of a flag that was given several times; None where it was not."""
    return [path for paths in values for path in paths] or None


def refuse_repeated(given: Sequence[click.Parameter]) -> None:
    """Refuse a flag for one path that was given twice, where the last one would win; given: parameters as they came.

    Other flags may be: scripts append one to change what stands before it.
    """
    for param in given:
        is_one = not getattr(param, "multiple", False) and param.nargs == 1
        times = given.count(param)
        if is_one and times > 1 and isinstance(param.type, (InputPath, OutputPath, RunPath)):
            raise click.UsageError(f"{_label(param)}: expected it once, got it {times} times; leave one of them out")


_OF_A_RUN = ("metrics.jsonl", "loss.png", "config.yaml", "run.json", "README.md", "demo.json")

_OF_A_COMPARISON = ("compare.json", "compare.html", "losses.png", "curves.png", "costs.png", "compare-runs/")


def _file_of_a_run(name: str) -> bool:
    own = name in _OF_A_RUN or re.match(r"checkpoint-\d+/", name) is not None
    return own or is_model_file(name) or is_adapter_file(name)


def _file_of_a_merge(name: str) -> bool:
    return is_model_file(name) or is_adapter_file(name) or name in ("merge_report.json", "merge_report.txt")


class OutputPath(PathType):
    """A folder or file that is written.

    Parameters
    ----------
    writes : callable
        Says by its path in the folder whether the command may write a file.
    default : str, optional
        Where it is written when the flag is not given.
    held : callable
        Says what of worth is there already, or None.
    """

    def __init__(
        self, writes: Callable[[str], bool], default: str | None = None,
        held: Callable[[Path], str | None] = held_by_an_output,
    ) -> None:  # fmt: skip
        self.writes, self.default, self.held = writes, default, held

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
            self.fail(f"expected the name of a folder or file, got {value!r}", param, ctx)
        return expand(value)


def output_of_a_run(default: str) -> OutputPath:
    """The folder of a training run."""
    return OutputPath(_file_of_a_run, default, held_by_an_output)


def output_of_a_comparison(default: str) -> OutputPath:
    """The folder of a comparison."""
    return OutputPath(lambda name: name.startswith(_OF_A_COMPARISON), default, held_by_an_output)


def output_of_a_demo(default: str) -> OutputPath:
    """The folder of a demonstration."""
    return OutputPath(_file_of_a_run, default, held_by_a_demo)


def output_of_a_model() -> OutputPath:
    """A folder or a GGUF file, with its report."""
    return OutputPath(_file_of_a_merge)


def check_outputs(ctx: click.Context, overwrite: bool) -> None:
    """Compare what the command's options name.

    Raises
    ------
    ConfigError
        An output is an input, or would replace a file of one, or holds something.
    """
    if overwrite:
        return
    inputs: list[tuple[str, str]] = []
    for param in ctx.command.params:
        value = ctx.params.get(param.name or "")
        if isinstance(param.type, InputPath) and value and value is not True:
            values = [value] if isinstance(value, (str, os.PathLike)) else value
            inputs += [
                (_label(param), place(os.fspath(path)) if param.name == "model" else os.fspath(path)) for path in values
            ]
    config = ctx.meta.get(CONFIG_FILE)
    if config is not None and not is_written_by_a_run(config):
        inputs.append(("config", os.fspath(config)))
    resumed = [ctx.params.get(param.name or "") for param in ctx.command.params if isinstance(param.type, ResumePath)]
    for param in ctx.command.params:
        if isinstance(param.type, OutputPath):
            output = ctx.params.get(param.name or "") or param.type.default
            for label, path in inputs if output else ():
                if any(resumed) and _is_template_of_run(path, str(output)):
                    continue  # the run's own copy, which stays as it is
                refuse_input(_label(param), str(output), param.type.writes, label, path)
            for checkpoint in resumed if output else ():
                if checkpoint:
                    refuse_input(_label(param), str(output), lambda name: False, "resume", str(checkpoint))
            if output:
                resume = next((str(value) for value in resumed if value), None)
                flag = param.opts[0] if isinstance(param, click.Option) else _label(param)
                refuse_occupied(flag, str(output), param.type.held(Path(output)), resume, bool(resumed))


def _is_template_of_run(path: str, output: str) -> bool:
    return os.path.realpath(path) == os.path.join(os.path.realpath(output), TEMPLATE_FILE)


RUN_MARK = "# lora-c train: every setting of this run"


def is_written_by_a_run(config: Path) -> bool:
    """Whether a config.yaml is what an earlier run left, which the same run may write again."""
    try:
        with open(config, encoding="utf-8") as file:
            return file.readline().rstrip() == RUN_MARK
    except (OSError, UnicodeDecodeError):
        return False


def refuse_foreign_settings(config: Path) -> None:
    """A config.yaml of the user's own in the output folder is not replaced; --overwrite of the command counts.

    Raises
    ------
    ConfigError
        There is one that no run wrote.
    """
    ctx = click.get_current_context(silent=True)
    overwrite = ctx is not None and ctx.meta.get(OVERWRITE)
    if os.path.lexists(config) and not is_written_by_a_run(config) and not overwrite:
        raise ConfigError(
            f"output-dir: expected a folder without a config.yaml of another kind, got {str(config)!r}, which no run wrote; "
            "move it away, choose another folder, or give --overwrite"
        )


def _label(param: click.Parameter) -> str:
    return (param.name or "").replace("_", "-") if isinstance(param, click.Option) else (param.name or "").upper()


def refuse_input(name: str, output: str, writes: Callable[[str], bool], input_name: str, path: str) -> None:
    """Compare one output with one input; links count as what they lead to.

    Raises
    ------
    ConfigError
        The output is the input, or would replace a file of it.
    """
    hit = _collision(Path(output), writes, Path(path))
    if hit is not None:
        raise ConfigError(
            f"{name}: expected another place than {input_name}, got {output!r}, which would replace {str(hit)!r}; choose "
            "another name, or give --overwrite"
        )


def _collision(output: Path, writes: Callable[[str], bool], path: Path) -> Path | None:
    if not os.path.exists(path):
        return None
    if _same(output, path):
        return path
    home = Path(os.path.realpath(output))
    for file in _files_of(path):
        if _same(output, file):
            return file
        real = Path(os.path.realpath(file))
        if real.is_relative_to(home) and writes(real.relative_to(home).as_posix()):
            return file
    inside = Path(os.path.realpath(path))
    if os.path.isdir(path) and home.is_relative_to(inside) and home.relative_to(inside).parts[0] in _READ_FOLDERS:
        return path / home.relative_to(inside).parts[0]
    return _linked(output, writes, path)


def _linked(output: Path, writes: Callable[[str], bool], path: Path) -> Path | None:
    """A file in the output folder that would be replaced and is, by a link, a file of the input."""
    if not os.path.isdir(output):
        return None
    files = list(_files_of(path))
    for entry in _scan(output):
        if writes(entry.name):
            found = next((file for file in files if _same(entry, file)), None)
            if found is not None:
                return found
    return None


def _files_of(path: Path) -> Iterator[Path]:
    """The files that are read where a path is given."""
    if not os.path.isdir(path):
        yield path
        match = _SPLIT.fullmatch(path.name)
        if match:
            yield from (p for p in path.parent.glob(f"{match['stem']}-*-of-{match['count']}.gguf") if p != path)
        return
    entries = _scan(path)
    names = {entry.name for entry in entries}
    for entry in entries:
        if entry.is_file() and entry.suffix != ".gguf":  # a model's or an adapter's folder is not read for these
            yield entry
        elif entry.name in _READ_FOLDERS or (ADAPTER_CONFIG not in names and (entry / ADAPTER_CONFIG).is_file()):
            yield from (file for file in _scan(entry) if file.is_file())


def _scan(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _same(first: Path, second: Path) -> bool:
    if os.path.realpath(first) == os.path.realpath(second):
        return True
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False


def refuse_inputs(name: str, output: str, inputs: Iterable[tuple[str, str]]) -> None:
    """As `refuse_input`, for a file or a model's folder whose input is found out late; --overwrite of the command counts."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None and ctx.meta.get(OVERWRITE):
        return
    for label, path in inputs:
        refuse_input(name, output, _file_of_a_merge, label, path)
