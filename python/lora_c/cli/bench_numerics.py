"""`lora-c bench --numerics`: its flags, and the runs that it makes."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from ..configs import LoraConfig, TrainConfig
from ..display.plot import can_plot, tell_missing_plot
from ..errors import ConfigError, shorten
from .data_options import open_data, reading_options, training_data_options
from .flags import field_option, take
from .json_output import print_json
from .occupied import held_by_an_output
from .paths import OutputPath
from .trials import need_held_out

if TYPE_CHECKING:
    from ..comparison.numerics_record import NumericsRecord
    from ..model.model import Model

F = TypeVar("F", bound=Callable[..., Any])
RECORD, PICTURE = "numerics.json", "numerics.png"
STEPS, _SEEDS = 200, 3
_LENGTH = 128  # of a sequence, where nobody says
_TRAINED = ("learning_rate", "val_fraction", "seed")  # fields of TrainConfig
_OWN = ("data", "eval_data", "limit", "columns", "skip_bad", "chat_template", "seeds", "output_dir", *_TRAINED)
_OF_STEPS = ("shape", "precision", "decode", "profile")  # what random tokens alone have


def _held(folder: Path) -> str | None:
    return f"a comparison ({RECORD})" if (folder / RECORD).is_file() else held_by_an_output(folder)


def numerics_flags(function: F) -> F:
    """Add --numerics and what belongs to it, under a heading of its own."""
    before = len(getattr(function, "__click_params__", ()))
    decorators = (
        click.option(
            "--numerics", is_flag=True,
            help="Train on --data in each precision, and compare losses, gradients, speed and memory.",
        ),
        training_data_options,
        reading_options,
        click.option(
            "--seeds", type=click.IntRange(1, 100), metavar="N",
            help=f"Runs of each precision; their spread is what differences are held against.  [default: {_SEEDS}]",
        ),
        *(field_option(name, TrainConfig.model_fields[name], "") for name in _TRAINED),
        click.option(
            "--output-dir", type=OutputPath(lambda name: name in (RECORD, PICTURE), held=_held),
            help=f"Folder for {RECORD} and {PICTURE}.  [default: nothing is written]",
        ),
    )  # fmt: skip
    for decorate in reversed(decorators):
        function = decorate(function)
    for param in function.__click_params__[before:]:  # type: ignore[attr-defined]
        param.section = "With --numerics"
    return function


def refuse_idle_flags(ctx: click.Context, own: Mapping[str, Any]) -> None:
    """Refuse what would change nothing with --numerics, or without it.

    Raises
    ------
    ConfigError
        Naming the first one.
    """
    given = [
        name for name in own if ctx.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
    ]
    for name in given:
        if own["numerics"] and name in _OF_STEPS and own[name] not in (None, False):
            why = "all of them are compared" if name == "precision" else "it trains on data, and times steps by the way"
            got = f"--{name}" if own[name] is True else own[name]
            raise ConfigError(f"{name}: expected none beside --numerics, got {got}; {why}, leave it out")
        if not own["numerics"] and name in _OWN and own[name] not in (None, ()):
            raise ConfigError(f"{name}: expected --numerics beside it, got none; leave it out")


def compare_on_data(model_name: str, open_model: Callable[[], Model], own: dict[str, Any]) -> None:
    """Train in every precision, then print what was found and write it to the output folder."""
    from ..comparison.numerics import compare_precisions
    from ..files.atomic import atomic_file, json_bytes
    from ..files.os_errors import make_folder

    config, seeds = _config_of(own), _seeds_of(own)
    need_held_out(own, config, "precisions")
    folder = make_folder(own["output_dir"]) if own["output_dir"] else None
    if folder is not None:
        tell_missing_plot(PICTURE)
    model = open_model()
    if own.get("chat_template"):
        from ..text.chosen_template import use_chat_template

        use_chat_template(model, own["chat_template"])
    config = config.model_copy(update={"max_seq_length": own["length"] or min(_LENGTH, model.context_length)})
    train_data, eval_data, _ = open_data(own, model.tokenizer, config)
    if eval_data is None:
        raise ConfigError("eval_data: expected held-out rows, got none; give --eval-data or --val-fraction")
    names = (
        "max_steps", "learning_rate", "per_device_train_batch_size", "max_seq_length", "val_fraction", "recompute",
        "activation_dtype",
    )  # fmt: skip
    options = {name: getattr(config, name) for name in names} | {"save_steps": 0.0}
    adapter = LoraConfig(r=own["rank"], lora_alpha=2 * own["rank"], target_modules="all-linear")
    about = {"model": model_name, "data": train_data.source, "quantize": own["quantize"], "rank": own["rank"]}
    about |= {name: options[name] for name in names if name not in ("val_fraction", "max_steps")} | {"steps": config.max_steps}
    about |= _machine(model)
    kept = nullcontext() if folder is None else atomic_file(folder / RECORD)  # refused before the runs, not behind them
    with kept as file, tempfile.TemporaryDirectory(prefix="lora-c-numerics-") as place:
        record = compare_precisions(
            model, train_data, eval_data, options, adapter, seeds, Path(place),
            lambda precision, seed: click.echo(f"run       {precision}, seed {seed}", err=True),
        )  # fmt: skip
        if file is not None:
            file.write(json_bytes(about | record.as_dict()))
    title = f"{Path(model_name).name} on {shorten((Path(file.name).name for file in train_data.files.taken), 2)}"
    _report(record, about, title, folder, own["as_json"])


def _config_of(own: dict[str, Any]) -> TrainConfig:
    """What all runs share.

    Raises
    ------
    ConfigError
        There is no data, or a value is none that runs can have.
    """
    if not own.get("data"):
        raise ConfigError("data: expected training data beside --numerics, got nothing; give --data PATH")
    given = take(dict(own), TrainConfig, skip=("precision", "max_seq_length", "output_dir"))
    length = {} if own["length"] is None else {"max_seq_length": own["length"]}
    steps = STEPS if own["steps"] is None else own["steps"]
    return TrainConfig(**given | length | {"max_steps": steps, "per_device_train_batch_size": own["batch"]})


def _seeds_of(own: Mapping[str, Any]) -> list[int]:
    first, count = own.get("seed") or 0, own.get("seeds") or _SEEDS
    if first + count > 2**63:
        raise ConfigError(f"seed: expected one with {count - 1} seeds above it, the last at most 2**63 - 1, got {first}")
    return list(range(first, first + count))


def _machine(model: Model) -> dict[str, Any]:
    from .. import _core

    return {"device": model.device, "isa": _core.get_isa(), "threads": _core.get_num_threads()}


def _report(record: NumericsRecord, about: dict[str, Any], title: str, folder: Path | None, as_json: bool) -> None:
    """Print what people read, then draw the picture beside the record, which is written."""
    from ..display.numerics_picture import draw_numerics
    from .numerics_report import show_numerics
    from .run_report import reporting

    found = about | record.as_dict()
    written: list[str] = []
    if not as_json:
        show_numerics(record, about)
        sys.stdout.flush()
    if folder is not None:
        written.append(RECORD)
        if can_plot():
            with reporting(folder / PICTURE):
                draw_numerics(found, folder / PICTURE, title)
                written.append(PICTURE)
    if as_json:
        print_json(found | {"output_dir": None if folder is None else str(folder), "written": written})
        return
    place = (
        f"{folder}: {', '.join(written)}" if folder is not None else "nothing; --output-dir DIR keeps the curves and a picture"
    )
    click.echo(f"saved     {place}")
    sys.stdout.flush()
