"""lora-c merge"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .generate import open_model
from .options import Command

if TYPE_CHECKING:
    from ..model import Model


class Factors(click.ParamType):
    """Numbers separated by commas, or a list from a file."""

    name = "W W …"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value if isinstance(value, list) else [float(value)]
        try:
            return [float(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"expected numbers, got {value!r}", param, ctx)


class MergeCommand(Command):
    """Takes ``--weights 0.7 0.3`` as people write it, besides ``--weights 0.7,0.3``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--weights" in args:
            first = args.index("--weights") + 1
            last = first
            while last < len(args) and _is_number(args[last]):
                last += 1
            if last > first:
                args = [*args[:first], ",".join(args[first:last]), *args[last:]]
        return super().parse_args(ctx, args)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@click.command("merge", cls=MergeCommand, short_help="Fold adapters into their base.")
@click.option("--model", type=str, required=True, help="Model folder.")
@click.option("--adapter", "adapters", type=str, multiple=True, required=True, help="Adapter; give it again for several.")
@click.option("--output-dir", type=str, required=True, help="Folder for the merged model.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "nf4"]),
    default="bfloat16",
    show_default=True,
    help="Stored type; nf4 quantizes the merged weights again.",
)
@click.option("--quantize", type=click.Choice(["nf4"]), help="Merge into the quantized base (as it was in QLoRA training).")
@click.option("--weights", type=Factors(), help="A factor for each adapter.  [default: 1]")
@click.option(
    "--combination", default="cat", show_default=True, help="cat (the exact sum), linear, svd, ties, dare, … as in PEFT."
)
@click.option("--density", type=float, help="Share of entries that ties, dare and magnitude_prune keep.")
@click.option("--svd-rank", type=int, help="Rank of the combined update for svd.")
@click.option("--majority-sign-method", type=click.Choice(["total", "frequency"]), default="total", help="For ties.")
@click.option("--seed", type=int, default=0, show_default=True, help="For the random pruning of dare.")
@click.option("--data", type=str, help="Text or JSONL for the report; by default a sample that comes with the package.")
@click.option("--report/--no-report", default=True, show_default=True, help="Measure what the merge loses.")
def command(
    model: str, adapters: tuple[str, ...], output_dir: str, dtype: Any, quantize: str | None, data: str | None, report: bool,
    **combination: Any,
) -> None:  # fmt: skip
    """Write W + s·B·A as a model folder of its own, with a report of what that loses. The base folder is not changed."""
    loaded = open_model({"model": model, "quantize": quantize})
    how = load_adapters(loaded, adapters, combination)
    done = f"merged {', '.join(adapters)} into {model}: {output_dir} ({dtype})"
    if not report:
        loaded.merge(dtype=dtype).save(output_dir)
        click.echo(done)
        return
    from ..files import write_json, write_text
    from ..merge_report import merge_with_report, segments_of

    segments = segments_of(loaded, data) if data else None
    merged, found = merge_with_report(loaded, dtype, segments, sample=data or "the default sample")
    found.details |= {"model": model, "adapters": list(adapters), **how}
    merged.save(output_dir)
    write_json(Path(output_dir) / "merge_report.json", found.as_dict())
    write_text(Path(output_dir) / "merge_report.txt", found.as_text())
    click.echo(found.as_text())
    click.echo(done)


def load_adapters(model: Model, paths: tuple[str, ...], combination: dict[str, Any]) -> dict[str, Any]:
    """Put the adapters on the model, combined where there are several or a factor; return how, for the report."""
    from ..errors import ConfigError

    weights = combination["weights"]
    if weights is not None and len(weights) != len(paths):
        raise ConfigError(f"weights: expected one for each of the {len(paths)} adapters, got {len(weights)}")
    if len(paths) == 1 and weights in (None, [1.0]):
        model.load_adapter(paths[0], is_trainable=False)
        return {}
    names = [f"{i}: {path}" for i, path in enumerate(paths, 1)]
    for name, path in zip(names, paths, strict=True):
        model.load_adapter(path, name=name, is_trainable=False)
    how = {key: combination[key] for key in ("density", "svd_rank", "majority_sign_method", "seed")}
    weights = weights or [1.0] * len(paths)
    model.add_weighted_adapter(names, weights, "combined", combination["combination"], **how)
    model.set_adapter("combined")
    return {"weights": weights, "combination": combination["combination"], **how}
