"""lora-c plot"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from .json_output import json_option, print_json
from .options import Command
from .paths import InputPath, PathType

if TYPE_CHECKING:
    from collections.abc import Sequence

_FORMATS = (".png", ".svg", ".pdf")
_LONGEST_NAME = 32  # of a run in the legend


class PicturePath(PathType):
    """The name of a picture; its ending is the format, so that no other file is replaced by mistake."""

    name = "PICTURE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if os.path.splitext(os.fspath(value))[1].lower() not in _FORMATS:
            self.fail(f"expected a name that ends in {', '.join(_FORMATS)}, got {os.fspath(value)!r}", param, ctx)
        return os.fspath(value)


class Runs(click.Argument):
    """Any number of runs; a single one from a file of settings is one path, not a sequence of letters."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        return super().type_cast_value(ctx, (value,) if isinstance(value, str) else value)


@click.command("plot", cls=Command, short_help="Draw the loss of training runs.")
@click.argument("runs", metavar="RUN...", nargs=-1, type=InputPath(), cls=Runs)
@click.option(
    "--out",
    "--output",
    "picture",
    type=PicturePath(),
    help="The picture.  [default: loss.png in the folder of one run; of several: losses.png]",
)
@click.option("--title", type=str, default="", help="Text above it.")
@json_option
def command(runs: tuple[str, ...], picture: str | None, title: str, as_json: bool) -> None:
    """Draw the losses of a RUN (the output folder of lora-c train), or of several in one picture, from metrics.jsonl.

    Training loss (each step, and a mean of many), held-out loss, learning rate. Runs that still go on can be drawn, too.
    """
    from ..display.plot import plot_runs
    from ..runs.history import read_metrics, summary_of

    if not runs:
        raise ConfigError("RUN: expected the folder of a run, got nothing; give the --output-dir of lora-c train")
    histories = {name: read_metrics(run) for name, run in zip(names_of(runs), runs, strict=True)}
    target = Path(picture) if picture else _default_picture(runs)
    plot_runs(histories, target, title)
    found = [{"run": name, **summary_of(records)} for name, records in histories.items()]
    if as_json:
        print_json({"picture": str(target), "runs": found})
        return
    width = max(len(run["run"]) for run in found)
    for run in found:
        click.echo(f"{run['run']:<{width}}  {losses_text(run)}")
    click.echo(f"drawn in {target}")


def losses_text(summary: dict[str, Any]) -> str:
    """The losses of a run in words: from where to where, and what the last number is."""
    parts = [f"{summary['steps']:,} steps"]
    if summary["train_loss"] is not None:
        count = summary["train_loss_steps"]
        what = f"mean of the last {count:,} steps" if count > 1 else "last step"
        parts.append(f"training loss {summary['first_train_loss']:.4f} -> {summary['train_loss']:.4f} ({what})")
    if summary["eval_loss"] is not None:
        first = f"{summary['first_eval_loss']:.4f} -> " if summary["evaluations"] > 1 else ""
        parts.append(f"held-out loss {first}{summary['eval_loss']:.4f}")
    return ", ".join(parts)


def _default_picture(runs: Sequence[str]) -> Path:
    if len(runs) > 1:
        return Path("losses.png")
    return (Path(runs[0]) if os.path.isdir(runs[0]) else Path(runs[0]).parent) / "loss.png"


def names_of(runs: Sequence[str]) -> list[str]:
    """Short names that tell the runs apart: the last part of the path, more of it where two are alike."""
    parts = [Path(os.path.abspath(run)).parts for run in runs]
    names: list[str] = []
    for i, own in enumerate(parts):
        others = [other for j, other in enumerate(parts) if j != i]
        count = next((n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others)), len(own))
        name = "/".join(own[-count:])
        name = name if len(name) <= _LONGEST_NAME else f"...{name[-_LONGEST_NAME + 3 :]}"
        names.append(name if name not in names else f"{name} ({i + 1})")
    return names
