"""lora-c sweep"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..configs import AdapterConfig, StackConfig, TrainConfig
from ..display.plot import can_plot, tell_missing_plot
from ..notices import tell
from .adapter_options import adapter_options, take_adapter
from .data_options import device_option, reading_options, training_data_options
from .early_forecast import read_and_forecast
from .json_output import json_option, print_json
from .options import Command, config_options, take
from .paths import OVERWRITE, InputPath, output_of_a_run
from .trials import Trials, need_held_out, need_inputs

if TYPE_CHECKING:
    from ..runs.sweep_record import SweepRecord
    from ..training.callbacks import Callback
    from ..training.trainer import Trainer

PICTURE = "sweep.png"
FOLDER = "lora-c-sweep"  # where nobody names one; another than that of lora-c train
# What a sweep decides itself.
_DECIDED = (
    "learning_rate", "eval_steps", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
    "early_stopping_patience", "early_stopping_threshold",
)  # fmt: skip


class _Sweep(Command):
    """Takes the settings of a run, too: what it decides itself is passed over."""

    def foreign_keys(self) -> set[str]:
        return {*_DECIDED, "lr", "samples"}


@click.command("sweep", cls=_Sweep, short_help="Find the learning rate of a run.")
@click.option("--model", type=InputPath(), help="Hugging Face folder of the base model.")
@click.option("--lr-min", type=float, default=1e-5, show_default=True, help="Lowest learning rate.")
@click.option("--lr-max", type=float, default=1e-2, show_default=True, help="Highest learning rate.")
@click.option("--trials", type=click.IntRange(2, 100), default=7, show_default=True, help="Rates, from one to the other.")
@click.option(
    "--factor", type=click.IntRange(2, 100), default=3, show_default=True,
    help="Of so many rates one goes on, for so many times the steps.",
)  # fmt: skip
@click.option("--output-dir", type=output_of_a_run(FOLDER), help=f"Folder of the sweep.  [default: {FOLDER}]")
@device_option
@training_data_options
@reading_options
@json_option
@config_options(TrainConfig, "Training", skip=("output_dir", *_DECIDED))
@adapter_options
def command(**own: Any) -> None:
    """Train with several learning rates, and go on with those of the least held-out loss, the best one to the end.

    Each rate is a run in a folder of its own. Given again, the command goes on where it was stopped. Writes sweep.json and
    sweep.png to the output folder.
    """
    from ..files.os_errors import make_folder
    from ..runs.lock import run_lock
    from ..training.halving import learning_rates
    from ..training.reporters import reporters
    from ..training.sweep import sweep

    as_json: bool = own.pop("as_json")
    given = {"output_dir": own.pop("output_dir") or FOLDER} | take(own, TrainConfig)
    config = TrainConfig(**given)
    adapter = take_adapter(own, config.seed)
    rates = learning_rates(own["lr_min"], own["lr_max"], own["trials"])
    need_inputs(own)
    need_held_out(own, config, "rates")
    reporters(config)  # a package that is absent is said before the model is loaded
    tell_missing_plot()
    data = read_and_forecast(own, config, adapter, {})
    folder = Path(config.output_dir)
    overwrite = bool(click.get_current_context().meta.get(OVERWRITE))
    with run_lock(make_folder(folder)):
        make = _Trials(own, given, config, adapter, data)
        try:
            record = sweep(make, rates, folder, factor=own["factor"], overwrite=overwrite, report=_say)
        except KeyboardInterrupt:
            click.echo("go on     by the same command (without --overwrite)", err=True)
            raise
        picture = _draw(record, folder)
    if as_json:
        found = {name: value for name, value in record.as_dict().items() if name not in ("format", "run")}
        print_json({**found, "output_dir": str(folder), "picture": picture})
    else:
        click.echo("\n".join(table_lines(record)))
        click.echo(f"chosen    {record.chosen:g}: the same options with lora-c train ... --learning-rate {record.chosen:g}")
    _tell_edge(record)


class _Trials(Trials):
    """Makes the trainer of a rate."""

    def __init__(
        self, own: dict[str, Any], given: dict[str, Any], config: TrainConfig, adapter: AdapterConfig | StackConfig, data: Any
    ) -> None:
        super().__init__(own, config, data)
        self.given, self.adapter = given, adapter

    def __call__(self, rate: float, folder: Path, callback: Callback) -> Trainer:
        from ..training.trainer import Trainer

        model = self.model(self.config, self.adapter)
        train_data, eval_data = self.data(model)
        config = TrainConfig(**self.given | {"learning_rate": rate, "output_dir": str(folder)})
        return Trainer(model, train_data, config, eval_data, callbacks=[callback])


def _say(rate: float, steps: int, loss: float | None) -> None:
    found = "diverged" if loss is None else f"held-out loss {loss:.4f}"
    click.echo(f"trial     learning rate {rate:g}, step {steps:,}: {found}", err=True)


def table_lines(record: SweepRecord) -> list[str]:
    """A row for each rate, a column for each comparison."""
    heads = ["learning rate", *(f"step {rung['steps']:,}" for rung in record.rungs)]
    rows = [heads]
    for rate, losses in sorted(record.losses.items()):
        cells = ["" if rung["steps"] not in losses else _cell(losses[rung["steps"]]) for rung in record.rungs]
        rows.append([f"{rate:g}", *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [line + ("  chosen" if line.split()[0] == f"{record.chosen:g}" else "") for line in lines]


def _cell(loss: float | None) -> str:
    return "diverged" if loss is None else f"{loss:.4f}"


def _draw(record: SweepRecord, folder: Path) -> str | None:
    from ..display.sweep_picture import draw_sweep
    from .run_report import reporting

    if not can_plot():
        return None
    with reporting(folder / PICTURE):
        draw_sweep(record.losses, record.chosen, folder / PICTURE)
    return str(folder / PICTURE)


def _tell_edge(record: SweepRecord) -> None:
    """Say where the best rate may lie beyond those that were tried."""
    rates = sorted(record.losses)
    if record.chosen in (rates[0], rates[-1]):
        flag = "--lr-min lower" if record.chosen == rates[0] else "--lr-max higher"
        tell(f"sweep: {record.chosen:g} is the last rate on its side; a better one may lie beyond it: set {flag}")
