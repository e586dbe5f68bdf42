"""lora-c merge"""

from __future__ import annotations

import click

from .generate import open_model
from .options import Command


@click.command("merge", cls=Command, short_help="Fold an adapter into its base.")
@click.option("--model", type=str, required=True, help="Model folder.")
@click.option("--adapter", type=str, required=True, help="PEFT adapter folder.")
@click.option("--output-dir", type=str, required=True, help="Folder for the merged model.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "nf4"]),
    default="bfloat16",
    show_default=True,
    help="Stored type; nf4 quantizes the merged weights again.",
)
@click.option("--quantize", type=click.Choice(["nf4"]), help="Merge into the quantized base (as it was in QLoRA training).")
def command(model: str, adapter: str, output_dir: str, dtype: str, quantize: str | None) -> None:
    """Write W + s·B·A as a model folder of its own. The base folder is not changed."""
    loaded = open_model({"model": model, "adapter": adapter, "quantize": quantize})
    merged = loaded.merge(dtype=dtype)
    merged.save(output_dir)
    click.echo(f"merged {adapter} into {model}: {output_dir} ({dtype})")
