"""lora-c compare"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..configs import TrainConfig
from ..display.plot import can_plot, tell_missing_plot
from ..errors import ConfigError
from .adapter_options import adapter_fields, take_adapter_values
from .compare_flags import compare_flags, job_of, rows_of, seeds_of, take_quick
from .data_options import device_option, reading_options, training_data_options
from .json_output import json_option, print_json
from .options import Command, config_options, take
from .own_rows import OF_ONE_RUN
from .paths import OVERWRITE, InputPath, output_of_a_comparison
from .run_table import duration
from .streams import columns_of
from .task_options import task_of, task_options
from .trials import need_held_out, need_inputs

if TYPE_CHECKING:
    from ..comparison.record import CompareRecord

FOLDER = "lora-c-compare"  # where nobody names one
PROCESS = "lora_c.cli.compare_process"
_DECIDED = ("method", *OF_ONE_RUN)  # what the rows decide, and what would end them at different steps


class _Compare(Command):
    """Takes the settings of a run, too: what the rows decide is passed over."""

    def foreign_keys(self) -> set[str]:
        return {*_DECIDED, "samples", "peft_type"}


@click.command("compare", cls=_Compare, short_help="Compare methods on your data, each in a process of its own.")
@click.option("--model", type=InputPath(), help="Hugging Face folder of the base model.")
@click.option("--output-dir", type=output_of_a_comparison(FOLDER), help=f"Folder of the comparison.  [default: {FOLDER}]")
@compare_flags
@device_option
@task_options
@training_data_options
@reading_options
@json_option
@config_options(TrainConfig, "Training", skip=("output_dir", *_DECIDED))
@adapter_fields
def command(**own: Any) -> None:
    """Train one method after the other on the same base, data and budget, and say which is worth it.

    Each row and seed is a process of its own. Given again, the command goes on where it was stopped; a row that has run is
    not run again. Writes compare.json, compare.html and pictures to the output folder. Where every row was refused or failed,
    the exit code is 1.
    """
    from ..comparison.compare import compare
    from ..display.rows_progress import open_rows
    from ..files.os_errors import make_folder
    from ..model.device_list import open_device
    from ..runs.lock import run_lock

    as_json: bool = own.pop("as_json")
    folder = Path(own.pop("output_dir") or FOLDER)
    rows, overwrite = rows_of(own), bool(click.get_current_context().meta.get(OVERWRITE))
    given = take(own, TrainConfig)
    adapter = take_adapter_values(own)
    if not (own["quick"] or (own.get("model") and own.get("data"))):
        need_inputs(own)
    given = take_quick(own, given, folder)
    config = TrainConfig(**given)
    need_inputs(own)
    need_held_out(own, config, "rows")
    seeds = seeds_of(own, config.seed)
    job = job_of(own, given, adapter, seeds) | {"classifier": _classifier(own, config)}
    open_device(own.get("device"))  # what cannot be used is said before there is a folder
    tell_missing_plot()
    with run_lock(make_folder(folder)):
        try:
            with open_rows(len(rows) * len(seeds)) as progress:
                record = compare(
                    PROCESS, job, rows, seeds, folder, with_loading=not own["no_loading"], overwrite=overwrite,
                    begin=lambda name, seed: progress.begin(f"{name}, seed {seed}"),
                    report=lambda *found: progress.end(_line(*found)),
                )  # fmt: skip
        except KeyboardInterrupt:
            click.echo("go on     by the same command (without --overwrite)", err=True)
            raise
        written = _write(record, folder)
    if as_json:
        found = {name: value for name, value in record.as_dict().items() if name not in ("format", "run")}
        print_json({**found, "output_dir": str(folder), "written": written})
    else:
        _show(record, folder, written)
    if not any("results" in run for row in record.rows.values() for run in row.runs.values()):
        raise click.exceptions.Exit(1)


def _show(record: CompareRecord, folder: Path, written: list[str]) -> None:
    from ..comparison.table import loading_line, table_lines

    click.echo("\n".join(table_lines(record, columns_of(sys.stdout))))
    if loading := loading_line(record):
        click.echo(f"loading   {loading}")
    click.echo(f"advice    {record.advice}")
    click.echo(f"saved     {folder}: {', '.join(written)}")


def _classifier(own: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """What every process is told of a classifier: its labels, found once; nothing where the rows are language models."""
    task = task_of(own, config.seed)
    given = next((name for name in ("task", "base_text") if own.get(name)), None)
    if given and task.get("task_type") == "SEQ_CLS":
        raise ConfigError(f"{given}: expected none beside --task-type SEQ_CLS, got one; a classifier writes no text")
    return {name: value for name, value in task.items() if name != "seed"}


def _line(name: str, seed: int, found: dict[str, Any], seconds: float) -> str:
    """What is said of a run."""
    results = found.get("results", {})
    if not found:
        said = "failed, see its log.txt; it is tried again by the same command"
    elif "refused" in found:
        said = f"refused: {found['refused']}"
    elif "diverged" in results:
        said = "diverged"
    else:
        said = f"held-out loss {results['eval_loss']:.4f}"
    return f"row       {name}, seed {seed}: {said} ({duration(seconds) if seconds > 0.5 else 'it had run'})"


def _write(record: CompareRecord, folder: Path) -> list[str]:
    """Write pictures and the report, and return the names of what there is; what cannot be written is told."""
    from ..comparison.pictures import draw_pictures
    from ..comparison.record import COMPARE_FILE
    from ..comparison.report import REPORT, report_html
    from ..files.atomic import write_text
    from .run_report import reporting

    pictures: dict[str, str] = {}
    written = [COMPARE_FILE]
    if can_plot():
        with reporting(folder / "losses.png"):
            pictures = draw_pictures(record, folder)
            written += pictures
    with reporting(folder / REPORT):
        write_text(folder / REPORT, report_html(record, pictures, folder, _facts(record)))
        written.append(REPORT)
    return written


def _facts(record: CompareRecord) -> dict[str, str]:
    """How it was measured."""
    from datetime import datetime, timezone

    from .. import __version__
    from .._core import get_isa
    from ..runs.record import cpu_name

    threads = record.base.get("costs", {}).get("threads")
    return {
        "command": shlex.join(["lora-c", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{cpu_name()}, {threads} thread{'' if threads == 1 else 's'}, kernels {get_isa()}",
        "version": f"lora-c {__version__}",
    }
