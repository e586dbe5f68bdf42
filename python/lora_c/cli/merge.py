"""lora-c merge"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..configs import FOUR_BIT, QUANT_TYPES
from ..notices import tell
from .data_options import columns_option
from .generate import open_model
from .json_output import json_option, print_json, size_of
from .options import Command
from .paths import InputPath, output_of_a_model, refuse_inputs
from .run_folder import quantization_of_run, run_option

if TYPE_CHECKING:
    from ..model.model import Model


class Factors(click.ParamType):  # type: ignore[type-arg]
    """Numbers separated by commas, or a list from a file."""

    name = "W W ..."

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
@run_option
@click.option("--model", type=InputPath(), required=True, help="Model folder.")
@click.option(
    "--adapter", "adapters", type=InputPath(), multiple=True, required=True, help="Adapter; give it again for several."
)
@click.option(
    "--output-dir", "--output", type=output_of_a_model(), required=True,
    help="Folder for the merged model, or a file NAME.gguf.",
)  # fmt: skip
@click.option(
    "--to",
    type=click.Choice(["hf", "gguf"]),
    help="hf: a model folder; gguf: one file for llama.cpp.  [default: gguf where the output's name ends in .gguf]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", *QUANT_TYPES]),
    metavar="TYPE",
    help="float32, bfloat16, float16; in folders nf4, fp4, fp4_e2m1, int4; in GGUF q8_0.  [default: bfloat16, GGUF: float16]",
)
@click.option(
    "--quantize", type=click.Choice([*QUANT_TYPES, "none"]),
    help="Merge into the quantized base, as it was in QLoRA training; none: into the base as it is.  [default: as --run "
    "was trained, else none]",
)  # fmt: skip
@click.option("--weights", type=Factors(), help="A factor for each adapter.  [default: 1]")
@click.option(
    "--combination", default="cat", show_default=True, help="cat (the exact sum), linear, svd, ties, dare, ... as in PEFT."
)
@click.option("--density", type=float, help="Share of entries that ties, dare and magnitude_prune keep.")
@click.option("--svd-rank", type=int, help="Rank of the combined update for svd.")
@click.option("--majority-sign-method", type=click.Choice(["total", "frequency"]), default="total", help="For ties.")
@click.option("--seed", type=int, default=0, show_default=True, help="For the random pruning of dare.")
@click.option("--data", type=InputPath(), help="Text or JSONL for the report; by default the package's own sample.")
@columns_option
@json_option
@click.option("--report/--no-report", default=True, show_default=True, help="Measure what the merge loses.")
def command(
    model: str, adapters: tuple[str, ...], output_dir: str, to: str | None, dtype: str | None, quantize: str | None,
    data: str | None, columns: dict[str, str] | None, report: bool, as_json: bool, **combination: Any,
) -> None:  # fmt: skip
    """Write W + s B A as a model of its own, with a report of what that loses. The base is not changed."""
    from ..gguf.models import TYPES, contents_of

    refuse_ignored(click.get_current_context())
    to = to or ("gguf" if output_dir.endswith(".gguf") else "hf")
    chosen = stored_type(to, dtype, output_dir)
    report_name = output_dir.removesuffix(".gguf") + ".merge_report" if to == "gguf" else f"{output_dir}/merge_report"
    for ending in (".json", ".txt") if report else ():
        refuse_inputs("output-dir", report_name + ending, [("an input", path) for path in (model, *adapters, data) if path])
    quantize = None if quantize == "none" else quantize
    loaded = open_model({"model": model, "quantize": quantize})
    is_given = click.get_current_context().get_parameter_source("quantize") is click.core.ParameterSource.COMMANDLINE
    if quantize and quantization_of_run() and not is_given:
        kind = quantize.upper()
        tell(f"merge: into the base in {kind}, with which the run was trained; --quantize none merges into the base as it is")
    how = load_adapters(loaded, adapters, combination)
    if to == "gguf":
        contents_of(loaded, TYPES[chosen])  # a refusal comes before the work
    outcome = {"model": model, "adapters": list(adapters), "output": output_dir, "format": to, "dtype": chosen, **how}
    if report and loaded.labels is not None:
        report = False
        tell("merge: a report compares next tokens, and a classifier has none: nothing is measured")
    done = f"merged {', '.join(adapters)} into {model}: {output_dir} ({chosen})"
    if not report:
        write_merged(loaded.merge(dtype=chosen), output_dir, to, chosen)
        print_json(outcome | {"bytes": size_of(output_dir)}) if as_json else click.echo(done)
        return
    from ..files.atomic import write_json, write_text
    from ..model.merge_report import merge_with_report, segments_of

    segments = segments_of(loaded, data, columns) if data else None
    merged, found = merge_with_report(loaded, chosen, segments, sample=data)
    found.details |= {"model": model, "adapters": list(adapters), **how}
    write_merged(merged, output_dir, to, chosen)
    write_json(report_name + ".json", found.as_dict())
    write_text(report_name + ".txt", found.as_text())
    if as_json:
        print_json(outcome | {"bytes": size_of(output_dir), "report": found.as_dict()})
        return
    click.echo(found.as_text())
    click.echo(done)


# Options of a combination, and whether it heeds them.
_NEEDS: dict[str, Callable[[str], bool]] = {
    "svd_rank": lambda kind: "svd" in kind,
    "density": lambda kind: kind.startswith(("ties", "dare", "magnitude_prune")),
    "majority_sign_method": lambda kind: "ties" in kind,
    "seed": lambda kind: "dare" in kind,
}


def refuse_ignored(ctx: click.Context) -> None:
    """Refuse options that were given and would do nothing, and an adapter that was given twice.

    Raises
    ------
    ConfigError
        Naming the option, and what it needs.
    """
    from ..errors import ConfigError

    values = ctx.params
    paths, kind = values["adapters"], values["combination"]
    real = [os.path.realpath(path) for path in paths]
    twice = next((path for path in paths if real.count(os.path.realpath(path)) > 1), None)
    if twice is not None:
        raise ConfigError(f"adapter: expected each one once, got {twice!r} twice; give --weights for more or less of one")
    given = {name for name in values if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT}
    if "data" in given and not values["report"]:
        raise ConfigError("data: expected the report beside it, which it is for, got --no-report; leave one of them out")
    alone = len(paths) == 1 and values["weights"] in (None, [1.0])
    for name, heeds in _NEEDS.items():
        if name in given and (alone or not heeds(kind)):
            got = "one adapter, which is not combined" if alone else f"--combination {kind}"
            raise ConfigError(f"{name}: expected a combination that heeds it, got {got}; leave it out, or choose another")


def stored_type(to: str, dtype: str | None, output: str) -> Any:
    """The type of the merged weights.

    Raises
    ------
    ConfigError
        The format has no place for it, or a GGUF file would take the place of a folder.
    """
    from ..errors import ConfigError

    if to == "gguf" and os.path.isdir(output):
        raise ConfigError(f"output-dir: expected the name of a file for --to gguf, got the folder {output!r}; give NAME.gguf")
    if to == "gguf" and dtype in FOUR_BIT:
        raise ConfigError(f"dtype: expected float32, float16, bfloat16 or q8_0 for a GGUF file, got {dtype!r}")
    if (to, dtype) == ("hf", "q8_0"):
        kinds = ", ".join(("float32", "float16", "bfloat16", *FOUR_BIT))
        raise ConfigError(f"dtype: expected one of {kinds} for a model folder, got 'q8_0'; give --to gguf")
    return dtype or ("float16" if to == "gguf" else "bfloat16")


def write_merged(merged: Model, output: str, to: str, dtype: str) -> None:
    """Write the folder or the file."""
    if to == "hf":
        merged.save(output)
        return
    from ..gguf import write_model
    from ..gguf.models import TYPES

    write_model(output, merged, TYPES[dtype], compare_tokenizer=False)  # the base's, whose contents were checked before


def load_adapters(model: Model, paths: tuple[str, ...], combination: dict[str, Any]) -> dict[str, Any]:
    """Put the adapters on the model, combined where there are several or a factor; return how, for the report."""
    from ..errors import ConfigError
    from ..text.chosen_template import use_template_of_adapter

    weights = combination["weights"]
    if weights is not None and len(weights) != len(paths):
        raise ConfigError(f"weights: expected one for each of the {len(paths)} adapters, got {len(weights)}")
    if len(paths) == 1 and weights in (None, [1.0]):
        model.load_adapter(paths[0], is_trainable=False)
        use_template_of_adapter(model, paths[0])
        return {}
    names = [f"{i}: {path}" for i, path in enumerate(paths, 1)]
    for name, path in zip(names, paths, strict=True):
        model.load_adapter(path, name=name, is_trainable=False)
    how = {key: combination[key] for key in ("density", "svd_rank", "majority_sign_method", "seed")}
    weights = weights or [1.0] * len(paths)
    model.add_weighted_adapter(names, weights, "combined", combination["combination"], **how)
    model.set_adapter("combined")
    return {"weights": weights, "combination": combination["combination"], **how}
