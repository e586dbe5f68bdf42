"""lora-c data"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..configs import TrainConfig
from ..errors import ConfigError
from .data_options import open_data, reading_options, training_data_options
from .options import Command, config_options, take
from .paths import InputPath, OutputPath
from .task_options import task_of, task_options

if TYPE_CHECKING:
    from ..data import Dataset
    from ..text.tokenizer import Tokenizer

# Of TrainConfig: what decides which tokens the model sees, and in how many steps.
FIELDS = (
    "max_seq_length", "val_fraction", "seed", "per_device_train_batch_size", "gradient_accumulation_steps",
    "num_train_epochs", "max_steps",
)  # fmt: skip
_OTHERS = tuple(name for name in TrainConfig.model_fields if name not in FIELDS)


class DataCommand(Command):
    """Takes the file of settings of a training run as it is."""

    def foreign_keys(self) -> set[str]:
        from .train import command as train

        spellings = {spelling for param in train.params for spelling in param.opts}
        return {spelling.lstrip("-").replace("-", "_") for spelling in spellings}


@click.command("data", cls=DataCommand, short_help="What a model will see of your data.")
@click.option("--model", type=InputPath(), required=True, help="Model folder; only its tokenizer and its sizes are read.")
@training_data_options
@reading_options
@task_options
@click.option("--resize-embedding", is_flag=True, default=None, help="As in train.")
@click.option("--show", type=click.IntRange(0), default=3, show_default=True, metavar="N", help="Show N examples.")
@click.option("--plot", type=OutputPath(lambda name: False), metavar="FILE", help="Write the lengths as a PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@config_options(TrainConfig, "Training", skip=_OTHERS)
def command(**own: Any) -> None:
    """Show what a model will see: examples with the loss in colour, lengths, what is cut or left out, steps of an epoch.

    Nothing is trained; --config takes the file of a training run, too. Without colour the text with loss stands between two
    kinds of brackets.
    """
    from ..model.tokenizer_of_model import load_tokenizer

    config = TrainConfig(**take(own, TrainConfig))
    if not own.get("data"):
        raise ConfigError("data: expected a path, got nothing; give --data PATH or put data: in the config file")
    tokenizer = load_tokenizer(own["model"], bool(own.get("resize_embedding")))
    task = task_of(own, config.seed)
    if task.get("task_type") == "SEQ_CLS" and tokenizer.model_labels is None:
        from ..families.labels import labels_from_options

        tokenizer.model_labels = labels_from_options(task["num_labels"], task["id2label"], task["problem_type"])
    if own.get("chat_template"):
        from ..text.chosen_template import use_template

        use_template(tokenizer, own["chat_template"])
    as_json = own["as_json"]
    if not as_json:
        click.echo(f"model     {own['model']}: {_sizes(tokenizer)}")
    train, held_out, counts = open_data(own, tokenizer, config, err=as_json)
    if own.get("plot"):
        from ..data.lengths import plot_lengths

        parts = {"training": train} | ({"held out": held_out} if held_out is not None else {})
        plot_lengths(parts, Path(own["plot"]), f"{train.source}, {Path(own['model']).name}")
    if as_json:
        click.echo(json.dumps({"read": counts} | _report(train, held_out, config, own["show"]), ensure_ascii=False))
    else:
        _print_report(train, held_out, config, own["show"])


def _sizes(tokenizer: Tokenizer) -> str:
    template = "with a chat template" if tokenizer.chat_template is not None else "without a chat template"
    return f"{tokenizer.vocab_size:,} tokens, a context of {tokenizer.model_context_length:,}, {template}"


def _steps(train: Dataset, config: TrainConfig) -> tuple[int, int, int]:
    """(sequences of a step, steps of an epoch, steps of the run), as `Trainer` counts them."""
    from ..data.batching import steps_per_epoch, total_steps

    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return per_step, steps_per_epoch(len(train), per_step), total_steps(len(train), config)


def _print_report(train: Dataset, held_out: Dataset | None, config: TrainConfig, n_shown: int) -> None:
    import sys

    from ..data.duplicates import repeated, shared
    from ..data.lengths import Lengths
    from ..data.shown import LOSS_STYLE, Shown, has_colour, marks_for, shown_samples

    n = repeated(train)
    click.echo(f"twice     {n:,} of {len(train):,} sequences have the tokens of an earlier one")
    if held_out is not None:
        found = shared(train, held_out)
        for pairs, what in ((found.samples, "are trained on, too"), (found.prompts, "have a prompt that is trained on")):
            first = f"; {pairs[0].held_out} is {pairs[0].train}" if pairs else ""
            click.echo(f"{'':<9} {len(pairs):,} of {len(held_out):,} held-out sequences {what}{first}")
    per_step, per_epoch, total = _steps(train, config)
    click.echo(f"steps     {per_epoch:,} of {per_step:,} sequences in an epoch, {total:,} in the run")
    lengths = Lengths.of(train)
    click.echo(
        f"lengths   {lengths.shortest:,} to {lengths.longest:,} tokens; half have up to {lengths.median:,}, nine of ten up to "
        f"{lengths.most:,}"
    )
    for line in lengths.lines(shutil.get_terminal_size().columns - 10):
        click.echo(f"{'':<9} {line}")
    samples = tuple(shown_samples(train, n_shown))
    if not samples:
        return
    marks = marks_for(sys.stdout)
    key = LOSS_STYLE.split()[-1] if has_colour(sys.stdout) else f"between {marks[0]} and {marks[1]}"
    click.echo(f"\nexamples  what carries loss is {key}\n")
    sys.stdout.flush()
    Shown(samples).print(sys.stdout)


def _report(train: Dataset, held_out: Dataset | None, config: TrainConfig, n_shown: int) -> dict[str, Any]:
    from dataclasses import asdict

    from ..data.duplicates import repeated, shared
    from ..data.shown import shown_samples

    per_step, per_epoch, total = _steps(train, config)
    found = None if held_out is None else shared(train, held_out)
    return {
        "train": _part(train) | {"repeated_sequences": repeated(train)},
        "held_out": None if held_out is None else _part(held_out),
        "in_training_and_held_out": None if found is None else asdict(found),
        "sequences_per_step": per_step,
        "steps_per_epoch": per_epoch,
        "total_steps": total,
        "examples": [
            {"where": sample.where, "pieces": [asdict(piece) for piece in shown.pieces]}
            for sample, shown in zip(train.samples, shown_samples(train, n_shown), strict=False)
        ],
    }


def _part(data: Dataset) -> dict[str, Any]:
    from dataclasses import asdict

    from ..data.lengths import Lengths

    return {
        "files": [str(path) for path in data.files.taken],
        "split": data.files.split or None,
        "examples": data.n_examples,
        "sequences": len(data),
        "tokens": data.n_tokens,
        "tokens_with_loss": data.n_predicted,
        "cut": data.n_truncated,
        "left_out": data.n_without_loss,
        "skipped": data.skipped,
        "lengths": asdict(Lengths.of(data)),
    }
