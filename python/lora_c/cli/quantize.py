"""lora-c quantize"""

from __future__ import annotations

from typing import Any

import click

from ..configs import FOUR_BIT
from .json_output import json_option, print_json, size_of
from .options import Command
from .paths import InputPath, output_of_a_model


@click.command("quantize", cls=Command, short_help="Write a model folder in 4-bit NF4 or another type.")
@click.option("--model", type=InputPath(), required=True, help="Model folder.")
@click.option("--output-dir", type=output_of_a_model(), required=True, help="Folder for the quantized model.")
@click.option("--quant-type", type=click.Choice(FOUR_BIT), default="nf4", show_default=True, help="What the 4 bits mean.")
@click.option("--double-quant/--no-double-quant", default=True, show_default=True, help="Quantize the block scales too.")
@click.option("--block-size", type=int, default=64, show_default=True, help="Weights per block scale.")
@json_option
def command(model: str, output_dir: str, quant_type: Any, double_quant: bool, block_size: int, as_json: bool) -> None:
    """Write the model in bitsandbytes' prequantized 4-bit format. In nf4 and fp4 transformers loads it too."""
    from .. import _core
    from ..errors import ConfigError
    from ..model.opening import load_model

    loaded = load_model(model, quantize=quant_type, double_quant=double_quant, block_size=block_size)
    if loaded.quant_records:  # such weights are kept as they are
        raise ConfigError(
            f"model: expected weights that are not quantized yet, got {len(loaded.quant_records)} matrices in 4 bits in "
            f"{model!r}; give the model that they were made from"
        )
    loaded.save(output_dir)
    size = _core.memory_report()["base weights"]["live"]
    if as_json:
        settings = {"dtype": quant_type, "double_quant": double_quant, "block_size": block_size}
        print_json({"model": model, "output": output_dir, "bytes": size_of(output_dir), "weight_bytes": size, **settings})
        return
    click.echo(f"quantized {model}: {output_dir} ({size / 2**20:,.1f} MiB of 4-bit weights)")
