"""lora-c eval"""

from __future__ import annotations

import math
from typing import Any

import click

from ..configs import QUANT_TYPES
from ..errors import ConfigError
from ..notices import tell
from .data_options import data_option, describe_data, device_option, reading, reading_options
from .generate import open_model
from .json_output import json_option, print_json
from .options import Command
from .paths import InputPath
from .run_folder import run_option


@click.command("eval", cls=Command, short_help="Loss and perplexity on your data.")
@run_option
@click.option("--model", type=InputPath(), required=True, help="Model folder.")
@data_option(required=True)
@reading_options
@click.option("--split", type=str, help="Of a folder: train, validation, test or all; default: test, or else validation.")
@click.option("--adapter", type=InputPath(), help="PEFT adapter folder.")
@click.option("--quantize", type=click.Choice(QUANT_TYPES), help="Quantize the base while loading.")
@device_option
@click.option("--limit", type=int, help="Read at most this many examples.")
@click.option("--max-seq-length", type=int, default=1024, show_default=True, help="Longest sequence in tokens.")
@click.option("--batch-tokens", type=int, default=2048, show_default=True, help="Tokens per batch.")
@json_option
def command(
    data: Any, split: str | None, limit: int | None, max_seq_length: int, batch_tokens: int, as_json: bool, **own: Any
) -> None:
    """Mean cross entropy and perplexity over the tokens that carry loss.

    Of a classifier on texts with labels: mean loss, accuracy, F1 and Matthews correlation; with regression, correlations.
    """
    from ..data import find_files, load_files
    from ..training.evaluation import evaluate_measures

    if batch_tokens < 1:
        raise ConfigError(f"batch_tokens: expected 1 or more, got {batch_tokens}")
    files = find_files(data, ("test", "validation", "train") if split is None else split)
    if split is not None and not files.split:
        raise ConfigError(f"split: expected a folder, whose files it chooses, got files (--split {split}); leave it out")
    if split is None and files.split == "train":
        tell("data: no test or validation split there: the training split is evaluated; --split train says that it is meant")
    model = open_model(own)
    dataset = load_files(files, model.tokenizer, max_seq_length=max_seq_length, limit=limit, **reading(own))
    describe_data("data", dataset, err=as_json)
    found = evaluate_measures(model, dataset, max_tokens=batch_tokens)
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
