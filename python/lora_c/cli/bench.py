"""lora-c bench"""

from __future__ import annotations

import sys
from typing import Any

import click

from ..configs import QUANT_TYPES
from .data_options import device_option
from .json_output import json_option, print_json
from .options import Command
from .paths import InputPath
from .streams import columns_of


@click.command("bench", cls=Command, short_help="Speed and memory of a training step on this machine.")
@click.option("--model", type=InputPath(), help="Model folder.  [default: the model that ships]")
@click.option("--batch", "--batch-size", "batch", type=int, default=4, show_default=True, help="Sequences of a step.")
@click.option(
    "--length", "--max-seq-length", "length", type=click.IntRange(2),
    help="Tokens of a sequence.  [default: 512, or the model's context]",
)  # fmt: skip
@click.option(
    "--rank", "--r", "--lora-r", "rank", type=int, default=16, show_default=True,
    help="Rank of the adapter on every linear layer.",
)  # fmt: skip
@click.option("--steps", type=click.IntRange(1), default=5, show_default=True, help="Timed steps, after one that warms up.")
@click.option("--quantize", type=click.Choice([*QUANT_TYPES, "none"]), default="nf4", show_default=True, help="QLoRA or LoRA.")
@click.option("--precision", type=click.Choice(["exact", "fast"]), default="fast", show_default=True, help="As in train.")
@click.option("--recompute", type=click.Choice(["none", "layer"]), default="none", show_default=True, help="As in train.")
@device_option
@json_option
@click.option("--profile", is_flag=True, help="List where the time of a step goes, operation by operation.")
def command(
    model: str | None,
    batch: int,
    length: int | None,
    rank: int,
    steps: int,
    quantize: str,
    recompute: str,
    precision: str,
    device: str | None,
    profile: bool,
    as_json: bool,
) -> None:
    """Time training steps on random tokens. Nothing is written."""
    from .. import _core
    from ..bench import StepBench, profile_table
    from ..checkpoints.model_names import DEMO
    from ..configs import LoraConfig
    from ..model.opening import load_model
    from ..text.prompts import need_language_model

    loaded = load_model(model or DEMO, quantize=None if quantize == "none" else quantize, device=device)
    need_language_model(loaded, "bench")
    loaded.add_adapter(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    loaded.decoder.precision = precision  # type: ignore[assignment]
    loaded.decoder.recompute = recompute  # type: ignore[assignment]
    bench = StepBench(loaded, batch, length or min(512, loaded.context_length))
    machine: dict[str, Any] = {"device": loaded.device, "isa": _core.get_isa(), "threads": _core.get_num_threads()}
    about = {"parameters": loaded.num_parameters(), "rank": rank, **machine}
    if not as_json:
        where = (
            f"{_core.get_isa()}, {_core.get_num_threads()} threads" if loaded.device == "cpu" else f"device {loaded.device}"
        )
        click.echo(f"{loaded.num_parameters():,} parameters, rank {rank}, {where}")
    measured = bench.measure(steps, profile=profile)
    if as_json:
        print_json(about | {"precision": precision, "recompute": recompute} | measured.as_dict())
        return
    click.echo(measured.describe())
    if profile:
        click.echo(profile_table(measured, _core.fma_peak(), columns_of(sys.stdout)))
