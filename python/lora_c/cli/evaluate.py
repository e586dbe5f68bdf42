"""lora-c eval"""

from __future__ import annotations

import json
import math
from typing import Any

import click

from .generate import open_model
from .options import Command
from .paths import InputPath, InputPaths, flatten


@click.command("eval", cls=Command, short_help="Loss and perplexity on your data.")
@click.option("--model", type=InputPath(), required=True, help="Model folder.")
@click.option(
    "--data", type=InputPaths(), multiple=True, callback=flatten, required=True,
    help="Data: .jsonl, .json, .parquet or .txt, several, or a folder.",
)  # fmt: skip
@click.option("--adapter", type=InputPath(), help="PEFT adapter folder.")
@click.option("--quantize", type=click.Choice(["nf4"]), help="Quantize the base while loading.")
@click.option("--limit", type=int, help="Read at most this many examples.")
@click.option("--max-seq-length", type=int, default=1024, show_default=True, help="Longest sequence in tokens.")
@click.option("--batch-tokens", type=int, default=2048, show_default=True, help="Tokens per batch.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(data: Any, limit: int | None, max_seq_length: int, batch_tokens: int, as_json: bool, **own: Any) -> None:
    """Mean cross entropy and perplexity over the tokens that carry loss."""
    from ..data import load_dataset
    from ..trainer import evaluate_loss

    model = open_model(own)
    length = min(max_seq_length, int(model.config["max_position_embeddings"]))
    dataset = load_dataset(data, model.tokenizer, max_seq_length=length, limit=limit)
    loss = evaluate_loss(model, dataset, max_tokens=batch_tokens)
    result = {"loss": loss, "perplexity": math.exp(loss), "tokens": dataset.n_predicted, "sequences": len(dataset)}
    result["precision"] = model.decoder.precision
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(f"{dataset.report()}\nloss {loss:.4f}  perplexity {math.exp(loss):.3f}")
