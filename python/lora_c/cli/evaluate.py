"""lora-c eval"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from ..configs import QUANT_TYPES
from ..errors import ConfigError
from ..notices import tell
from .data_options import data_option, describe_data, device_option, precision_option, reading, reading_options
from .generate import open_model
from .json_output import json_option, print_json
from .options import Command
from .paths import InputPath
from .run_folder import run_option
from .task_flags import refuse_idle_flags, task_flags, task_of

if TYPE_CHECKING:
    from ..data import FoundFiles


@click.command("eval", cls=Command, short_help="Loss, perplexity and scores of tasks on your data.")
@run_option
@click.option("--model", type=InputPath(), required=True, help="Model folder.")
@data_option(required=True)
@reading_options
@click.option("--split", type=str, help="Of a folder: train, validation, test or all; default: test, or else validation.")
@click.option("--adapter", type=InputPath(), help="PEFT adapter folder.")
@click.option("--quantize", type=click.Choice(QUANT_TYPES), help="Quantize the base while loading.")
@device_option
@precision_option("exact; of answers that are written fast")
@task_flags
@click.option("--limit", type=int, help="Read at most this many examples.")
@click.option("--max-seq-length", type=int, default=1024, show_default=True, help="Longest sequence in tokens.")
@click.option("--batch-tokens", type=int, default=2048, show_default=True, help="Tokens per batch.")
@json_option
def command(**own: Any) -> None:
    """Mean cross entropy and perplexity over the tokens that carry loss; with --task what answers are worth.

    Of a classifier on texts with labels: mean loss, accuracy, F1 and Matthews correlation; with regression, correlations.

    Tasks whose answers are written (greedily): exact-match, f1, rouge-l, bleu, on prompts with completions or "references", or
    messages. multiple-choice: the likeliest of "choices". With --baseline the base, or another adapter,
    stands beside the adapter.
    """
    if own["batch_tokens"] < 1:
        raise ConfigError(f"batch_tokens: expected 1 or more, got {own['batch_tokens']}")
    task = task_of(own)
    refuse_idle_flags(click.get_current_context(), own, task)
    files = found_files(own["data"], own["split"])
    if task is not None:
        from .task_evaluation import evaluate_task

        evaluate_task(own, task, files)
    else:
        _evaluate_loss(own, files)


def found_files(data: Any, split: str | None) -> FoundFiles:
    """The files that are evaluated: of a folder those of a split, its test data where nobody says."""
    from ..data import find_files

    files = find_files(data, ("test", "validation", "train") if split is None else split)
    if split is not None and not files.split:
        raise ConfigError(f"split: expected a folder, whose files it chooses, got files (--split {split}); leave it out")
    if split is None and files.split == "train":
        tell("data: no test or validation split there: the training split is evaluated; --split train says that it is meant")
    return files


def _evaluate_loss(own: dict[str, Any], files: FoundFiles) -> None:
    from ..data import load_files
    from ..training.evaluation import evaluate_measures

    as_json: bool = own["as_json"]
    model = open_model(own)
    options: dict[str, Any] = {"max_seq_length": own["max_seq_length"], "limit": own["limit"]} | reading(own)
    dataset = load_files(files, model.tokenizer, **options)
    describe_data("data", dataset, err=as_json)
    found = evaluate_measures(model, dataset, max_tokens=own["batch_tokens"])
    if model.labels is None:
        found["perplexity"] = math.exp(found["loss"]) if found["loss"] < 700 else math.inf
    counts = (
        {"sequences": len(dataset)} if model.labels is not None else {"tokens": dataset.n_predicted, "sequences": len(dataset)}
    )
    result: dict[str, Any] = {**found, **counts, "precision": model.decoder.precision}
    if as_json:
        print_json(result)
    else:
        click.echo("  ".join(f"{name} {value:.{3 if name == 'perplexity' else 4}f}" for name, value in found.items()))
