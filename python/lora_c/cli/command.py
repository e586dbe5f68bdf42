"""The class of all commands: --config, --overwrite, second names of flags, and help by section."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from ..configs.other_names import meant, names_of
from ..errors import ConfigError
from .command_help import EXAMPLES, MAIN_FLAGS
from .flag_names import dashed, flag_name, refuse_two_names
from .option_errors import as_given
from .paths import OVERWRITE, OutputPath, check_outputs, refuse_repeated, with_repeated_flags
from .print_config import is_requested, settings_text
from .settings_file import keys_of, read_into
from .streams import fitting_output

_WRITERS_OF_TEXT = ("generate", "classify", "chat", "completion")
_SHORT = {"model": "-m"}  # as in llama.cpp and mlx-lm


class Command(click.Command):
    """A command with ``--config FILE``, whose keys are the names of its flags; a flag wins over the file.

    One that writes has ``--overwrite``, without which an output that is also an input, or holds something, is refused.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._add_second_names()
        self.params.append(
            click.Option(
                ["--config"], type=click.Path(path_type=Path), metavar="FILE", is_eager=True, expose_value=False,
                callback=read_into, help="YAML file whose keys are the names of the flags; a flag wins over the file.",
            )
        )  # fmt: skip
        if any(isinstance(param.type, OutputPath) for param in self.params):
            text = "Let the output take the place of an input, or of what is there."
            self.params.append(
                click.Option(["--overwrite"], is_flag=True, expose_value=False, callback=_remember_overwrite, help=text)
            )

    def foreign_keys(self) -> set[str]:
        """Keys of files of settings that are another command's, which this one passes over."""
        return set()

    def _add_second_names(self) -> None:
        taken = {spelling for param in self.params for spelling in (*param.opts, *param.secondary_opts)}
        for param in self.params:
            if isinstance(param, click.Option) and param.name and not param.is_flag:
                names = [flag_name(name) for name in names_of(param.name)]
                names += [_SHORT[param.name]] if param.name in _SHORT else []
                param.opts += [name for name in names if name not in taken]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the flags; an unknown one is answered with the name of what it means here."""
        args = with_repeated_flags(dashed(self, args), self.params)
        refuse_two_names(ctx, args)
        try:
            rest = super().parse_args(ctx, list(args))
            refuse_repeated(self.make_parser(ctx).parse_args(list(args))[2])
            return rest
        except click.NoSuchOption as error:
            known = {key: param for param in self.params for key in (str(param.name), *keys_of(param))}
            found = meant(error.option_name.lstrip("-").replace("-", "_"), known)
            param = known.get(found or "")
            if isinstance(param, click.Argument):
                error.message += f" {param.make_metavar(ctx)} is given without one."  # type: ignore[misc]
            error.possibilities = [param.opts[0]] if isinstance(param, click.Option) else None  # type: ignore[misc]
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; an option that is refused has the name that it was given."""
        if is_requested(ctx):
            click.echo(settings_text(ctx, self.sections(ctx)))
            return None
        try:
            check_outputs(ctx, overwrite=bool(ctx.meta.get(OVERWRITE)))
            with nullcontext() if self.name in _WRITERS_OF_TEXT else fitting_output():
                return super().invoke(ctx)
        except ConfigError as error:
            raise as_given(error, ctx) from None

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_usage(ctx, formatter)
        formatter.write_paragraph()
        for example in EXAMPLES.get(str(self.name), ()):
            formatter.write("".join(f"  {line}\n" for line in example.split("\n")))  # as they stand, to be copied
        self.format_help_text(ctx, formatter)
        self.format_options(ctx, formatter)
        self.format_epilog(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, params in self.sections(ctx).items():
            records = [record for param in params if (record := param.get_help_record(ctx)) is not None]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def sections(self, ctx: click.Context) -> dict[str, list[click.Parameter]]:
        """The parameters by the headings of the help, the main flags first."""
        main = MAIN_FLAGS.get(str(self.name), ())
        sections: dict[str, list[click.Parameter]] = {"Main flags": [], "Options": []}
        for param in sorted(self.get_params(ctx), key=lambda p: main.index(p.name) if p.name in main else len(main)):
            title = "Main flags" if param.name in main else getattr(param, "section", "") or "Options"
            sections.setdefault(title, []).append(param)
        return sections


def _remember_overwrite(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.meta[OVERWRITE] = value
