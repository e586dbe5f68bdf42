"""lora-c bench"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, get_args

import click

from ..bench_shapes import SHAPES
from ..configs import QUANT_TYPES
from ..configs.training import RECOMPUTES, ActivationDtype
from .bench_numerics import STEPS, compare_on_data, numerics_flags, refuse_idle_flags
from .data_options import device_option, precision_option
from .flag_types import Known
from .json_output import json_option, print_json
from .options import Command
from .paths import InputPath
from .streams import columns_of

if TYPE_CHECKING:
    from ..model.model import Model

_STEPS = 5


@click.command("bench", cls=Command, short_help="Speed and memory of a training step on this machine.")
@click.option("--model", type=InputPath(), help="Model folder.  [default: the model that ships]")
@click.option(
    "--shape", type=Known(SHAPES), metavar="NAME",
    help=f"In place of a model: synthetic weights of a well-known shape ({', '.join(SHAPES)}).",
)  # fmt: skip
@click.option(
    "--batch", "--batch-size", "batch", type=click.IntRange(1), default=4, show_default=True, help="Sequences of a step."
)
@click.option(
    "--length", "--max-seq-length", "length", type=click.IntRange(2),
    help="Tokens of a sequence.  [default: 512, or the model's context]",
)  # fmt: skip
@click.option(
    "--rank", "--r", "--lora-r", "rank", type=click.IntRange(1), default=16, show_default=True,
    help="Rank of the adapter on every linear layer.",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(1),
    help=f"Timed steps, after one that warms up; or those of a run.  [default: {_STEPS}; with --numerics {STEPS}]",
)  # fmt: skip
@click.option("--quantize", type=click.Choice([*QUANT_TYPES, "none"]), default="nf4", show_default=True, help="QLoRA or LoRA.")
@precision_option("fast")
@click.option("--recompute", type=click.Choice(RECOMPUTES), default="none", show_default=True, help="As in train.")
@click.option(
    "--activation-dtype",
    type=click.Choice(get_args(ActivationDtype)),
    default="float32",
    show_default=True,
    help="As in train.",
)
@click.option(
    "--decode", type=click.IntRange(1), metavar="N", help="Decode N tokens, too, one sequence behind --length tokens."
)
@device_option
@json_option
@click.option("--profile", is_flag=True, help="List where the time of a step goes, operation by operation.")
@numerics_flags
def command(**own: Any) -> None:
    """Time training steps on random tokens; nothing is written.

    With --numerics train on data of your own in every precision, with several seeds, and say whether the precisions differ
    by less than the seeds do.
    """
    from ..checkpoints.model_names import DEMO

    refuse_idle_flags(click.get_current_context(), own)

    def opened() -> Model:
        return _open(own["model"], own["shape"], None if own["quantize"] == "none" else own["quantize"], own["device"])

    own["precision"] = own["precision"] or "fast"
    if own["numerics"]:
        compare_on_data(own["model"] or DEMO, opened, own)
    else:
        names = (
            "shape", "batch", "length", "rank", "recompute", "activation_dtype", "precision", "decode", "profile", "as_json",
        )  # fmt: skip
        _time_steps(opened(), own["steps"] or _STEPS, **{name: own[name] for name in names})


def _time_steps(
    loaded: Model, steps: int, *, shape: str | None, batch: int, length: int | None, rank: int, recompute: str,
    activation_dtype: str, precision: str, decode: int | None, profile: bool, as_json: bool,
) -> None:  # fmt: skip
    """Print the speed and the memory of steps on random tokens."""
    from .. import _core
    from ..bench import DecodeBench, StepBench, profile_table
    from ..configs import LoraConfig
    from ..training.memory import kept_text

    loaded.add_adapter(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    loaded.decoder.precision = precision  # type: ignore[assignment]
    loaded.decoder.recompute = recompute  # type: ignore[assignment]
    loaded.decoder.activation_dtype = activation_dtype  # type: ignore[assignment]
    bench = StepBench(loaded, batch, length or min(512, loaded.context_length))
    decoding = DecodeBench(loaded, decode, length) if decode is not None else None
    machine: dict[str, Any] = {"device": loaded.device, "isa": _core.get_isa(), "threads": _core.get_num_threads()}
    about = {"shape": shape, "parameters": loaded.num_parameters(), "rank": rank, **machine}
    if not as_json:
        where = (
            f"{_core.get_isa()}, {_core.get_num_threads()} threads" if loaded.device == "cpu" else f"device {loaded.device}"
        )
        kept = kept_text(recompute, activation_dtype)
        click.echo(f"{loaded.num_parameters():,} parameters, rank {rank}, {precision}{kept}; {where}")
    measured = bench.measure(steps, profile=profile)
    decoded = decoding.measure() if decoding else None
    if as_json:
        more = {"decode": decoded.as_dict()} if decoded else {}
        about |= {"precision": precision, "recompute": recompute, "activation_dtype": activation_dtype}
        print_json(about | measured.as_dict() | more)
        return
    click.echo(measured.describe())
    if decoded:
        click.echo(decoded.describe())
    if profile:
        click.echo(profile_table(measured, _core.fma_peak(), columns_of(sys.stdout)))


def _open(model: str | None, shape: str | None, quantize: Any, device: str | None) -> Model:
    """The model of these files, or of this shape.

    Raises
    ------
    ConfigError
        Both are given.
    """
    from ..bench_shapes import synthetic_model
    from ..checkpoints.model_names import DEMO
    from ..errors import ConfigError
    from ..model.opening import load_model
    from ..text.prompts import need_language_model
    from ..weights.quantization import Quantization

    if shape is not None:
        if model is not None:
            raise ConfigError(f"shape: expected no model beside it, got --model {model}; leave one of them out")
        return synthetic_model(shape, Quantization(quantize) if quantize else None, device)
    loaded = load_model(model or DEMO, quantize=quantize, device=device)
    need_language_model(loaded, "bench")
    return loaded
