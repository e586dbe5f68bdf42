"""What `lora-c train` leaves of a run: the result first, then what reports on it, which may fail."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import LoraCError, SaveError
from ..files.os_errors import reason
from ..notices import tell
from .json_output import print_json
from .run_table import result_values, show_table

if TYPE_CHECKING:
    from ..training.sample_answers import SampleAnswer
    from ..training.train_result import TrainResult
    from ..training.trainer import Trainer


@contextmanager
def reporting(what: object) -> Iterator[None]:
    """What goes wrong inside is told in a line and ends nothing."""
    try:
        yield
    except Exception as error:  # of any library: the result is worth more than what is said of it
        tell(f"{what}: not written ({reason(error)})")


def begin_record(trainer: Trainer, base: str, counts: dict[str, int], samples: list[SampleAnswer]) -> dict[str, Any] | None:
    """run.json as far as it is known; counts: what became of the examples that were read."""
    from ..runs.record import RUN_FILE, describe_run, write_run

    with reporting(trainer.output_dir / RUN_FILE):
        record = describe_run(trainer, base, shlex.join(["lora-c", *sys.argv[1:]]))
        record["data"] |= counts  # before the split
        record["samples"] = [sample.as_dict() for sample in samples]
        write_run(trainer.output_dir, record)
        return record
    return None


def begin_samples(trainer: Trainer, count: int) -> list[SampleAnswer]:
    """Held-out prompts and their answers before training; of a resumed run those that it began with."""
    from ..runs.record import read_run
    from ..training.sample_answers import answer_of, choose_prompts

    samples: list[SampleAnswer] = []
    if trainer.model.labels is not None:  # it answers nothing
        return samples
    with reporting("samples"):
        earlier = (read_run(trainer.output_dir) or {}).get("samples", []) if trainer.resumed_at else []
        known = {sample["prompt"]: sample["before"] for sample in earlier}
        samples = choose_prompts(trainer.model, trainer.eval_data, count)
        for sample in samples:
            sample.before = known.get(sample.prompt) if trainer.resumed_at else answer_of(trainer.model, sample)
    return samples


def end_samples(trainer: Trainer, samples: list[SampleAnswer], stopped: Callable[[], bool]) -> None:
    """Their answers after it."""
    from ..training.sample_answers import answer_of

    with reporting("samples"):
        for sample in samples:
            sample.after = answer_of(trainer.model, sample, stopped)


def save_result(trainer: Trainer, result: TrainResult) -> str:
    """Save the adapter or the model, and return how to call it.

    Raises
    ------
    SaveError
        With the place of the last checkpoint, or of the folder for temporary files, where it is instead.
    """
    from ..checkpoints.written import BASE_FOLDER, has_own_base
    from ..runs.checkpoints import checkpoint_folder

    folder = trainer.output_dir
    kind = "adapter" if trainer.model.adapter_config is not None else "model"
    try:
        _save(trainer, folder)
    except LoraCError as error:
        if result.steps in trainer.checkpoints:
            place = checkpoint_folder(folder, result.steps)
        else:
            place = _rescue(trainer, error)
        raise SaveError(f"{error}; what was trained is in {place}") from None
    base = f", with the base that it needs in {BASE_FOLDER}/" if kind == "adapter" and has_own_base(folder, None) else ""
    return f"{kind} in {folder}{base}"


def _save(trainer: Trainer, folder: Path) -> None:
    model = trainer.model
    if model.adapter_config is not None:
        model.save_adapter(folder)
        return
    model.save(folder)
    drop_adapter(folder)


def drop_adapter(folder: Path) -> None:
    """Remove the adapter that a run before has left in a folder which holds a model now: it would be used with it."""
    from ..adapters.stack_folder import files_of_stack
    from ..checkpoints.written import adapter_files_in

    for name in sorted(adapter_files_in(folder) | files_of_stack(folder)):
        (folder / name).unlink(missing_ok=True)
        if (folder / name).parent != folder:
            with suppress(OSError):  # it holds something else
                (folder / name).parent.rmdir()


def _rescue(trainer: Trainer, error: LoraCError) -> Path:
    """Save what nothing holds yet where temporary files go; if that cannot be written either, raise the first error."""
    try:
        place = Path(tempfile.mkdtemp(prefix="lora-c-rescued-"))
    except OSError:
        raise error from None
    try:
        _save(trainer, place)
    except LoraCError:
        shutil.rmtree(place, ignore_errors=True)
        raise error from None
    return place


def report_result(
    trainer: Trainer, result: TrainResult, saved: str, record: dict[str, Any] | None, samples: list[SampleAnswer], title: str,
    as_json: bool = False,
) -> None:  # fmt: skip
    """Write run.json, the model card, the tokenizer and the plot, and say what was reached."""
    from ..display.plot import plot_losses
    from ..model.saving import copy_tokenizer
    from ..runs.model_card import CARD_FILE, write_model_card
    from ..runs.record import RUN_FILE, describe_result, write_run

    folder = trainer.output_dir
    if record is not None:
        record |= {"result": describe_result(result), "samples": [sample.as_dict() for sample in samples]}
        with reporting(folder / RUN_FILE):
            write_run(folder, record)
        with reporting(folder / CARD_FILE):
            write_model_card(folder, trainer, record)
    if trainer.model.adapter_config is not None:
        with reporting(f"{folder}: tokenizer"):
            copy_tokenizer(trainer.model, folder)
    plotted = False
    if trainer.history:
        with reporting(folder / "loss.png"):
            plotted = plot_losses(trainer.history, folder / "loss.png", title)
    show_table(result, saved + (", loss.png" if plotted else ""))
    if as_json:
        kind = "adapter" if trainer.model.adapter_config is not None else "model"
        print_json(result_values(result, kind, str(folder)))
    show_samples(samples)


def show_samples(samples: list[SampleAnswer]) -> None:
    """The held-out prompts with the answers before and after."""
    from ..training.sample_answers import in_one_line

    for sample in samples:
        if sample.after is not None:
            click.echo(f"sample    {in_one_line(sample.prompt, 100, end=True)}", err=True)
            for name, text in (("expected", sample.expected), ("before", sample.before), ("after", sample.after)):
                if text is not None:
                    click.echo(f"          {name:<9} {in_one_line(text, 90)}", err=True)


def resume_command(folder: Path) -> str:
    """The line that goes on with a run that was stopped."""
    from .saved_settings import CONFIG_NAME

    return f"lora-c train --config {shlex.quote(os.path.join(folder, CONFIG_NAME))} --resume"
