"""lora-c replay"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .json_output import json_option, print_json
from .options import Command
from .paths import InputPath

if TYPE_CHECKING:
    from ..training.replay import Replay


@click.command("replay", cls=Command, short_help="Compute a step again that a run has kept because it was not finite.")
@click.argument("folder", type=InputPath())
@click.option("--model", type=InputPath(), help="The base of the run, where it has moved.")
@json_option
def command(folder: str, model: str | None, as_json: bool, **unused: Any) -> None:
    """Compute a step again, and name the operation that made its first value that is not finite.

    FOLDER is bad-step-N in the output folder of a run: the batch, the parameters before it and the settings.
    """
    from ..training.replay import replay

    found = replay(folder, model)
    print_json(asdict(found)) if as_json else _show(found)


def _short(name: str) -> str:
    """A parameter without what PEFT puts around every name."""
    return name.removeprefix("base_model.model.").removeprefix("model.").removesuffix(".weight")


def _show(found: Replay) -> None:
    from ..display.printable import printable

    click.echo(f"step      {found.step}: {printable(found.problem)}")
    same = {True: "the same bits", False: "other bits"}
    click.echo(f"replayed  loss {found.loss:g}: {same[found.same_loss]}; gradients: {same[found.same_gradients]}")
    first = found.first_nonfinite
    if first is None:
        click.echo("first     every value is finite")
    else:
        token = f", at the token {first.token!r}" if first.token is not None else ""
        made = f": {first.operation}, {first.result}[{first.row}, {first.column}] = {first.value:g}" if first.operation else ""
        value = "" if first.operation else f" = {first.value:g}"
        batch = f" (micro-batch {first.batch})" if first.batch else ""
        click.echo(f"first     {printable(first.where)}{made}{value}{token}{batch}")
    for name, norm in found.gradient_norms.items() if first is None else ():
        click.echo(f"gradient  {norm:<10.4g}  {printable(_short(name))}")
