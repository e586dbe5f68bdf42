"""lora-c plan"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..configs import TrainConfig
from ..errors import ConfigError
from ..families.shapes import SHAPES
from .adapter_options import adapter_options, take_adapter
from .data_options import open_data, reading_options, training_data_options
from .flag_types import FiniteRange, Known
from .json_output import json_option, print_json
from .options import Command, config_options, take
from .paths import InputPath
from .task_options import task_of, task_options

if TYPE_CHECKING:
    from ..data import Dataset
    from ..planning.subject import Subject


class PlanCommand(Command):
    """Takes the file of settings of a training run as it is."""

    def foreign_keys(self) -> set[str]:
        from .train import command as train

        spellings = {spelling for param in train.params for spelling in param.opts}
        return {spelling.lstrip("-").replace("-", "_") for spelling in spellings}


@click.command("plan", cls=PlanCommand, short_help="What a training run would take, before any of it.")
@click.option("--model", type=InputPath(), help="Model folder or GGUF file; only its headers are read.")
@click.option(
    "--shape", type=Known(SHAPES), metavar="NAME",
    help=f"In place of a model: a well-known shape, without weights ({', '.join(SHAPES)}).",
)  # fmt: skip
@click.option(
    "--device", type=str, metavar="NAME", default=None,
    help="What it is to fit into: a name that `lora-c devices` lists, or an NVIDIA card by its name, such as T4, 'RTX 4090', "
    "A100, H100.  [default: LORA_C_DEVICE of the environment, else cpu]",
)  # fmt: skip
@click.option(
    "--seconds", type=FiniteRange(0, 600), default=3.0, show_default=True,
    help="How long passes are measured for the time of a step; 0: not at all.",
)  # fmt: skip
@training_data_options
@reading_options
@json_option
@task_options
@config_options(TrainConfig, "Training")
@adapter_options
def command(**own: Any) -> None:
    """Say what a run would take before any of it: trained parameters, memory by kind, checkpoints, work, time, what fits.

    Flags are those of train, and --config takes the file of a training run. With --data also the steps, and what follows from
    the data for the adapter. Nothing is written.
    """
    from ..model.device_list import device_name
    from ..planning.plan import make_plan, place_named
    from .plan_report import show_plan

    config = TrainConfig(**take(own, TrainConfig))
    adapter = take_adapter(own, config.seed)
    place, seconds = place_named(device_name(own.get("device"))), own.pop("seconds")
    subject, data = _subject(own, config, adapter if config.method in ("lora", "qlora") else None, place.device)
    plan = make_plan(subject, place, None if data is None else data.n_predicted)
    if seconds > 0 and place.capability is None:
        plan = plan.measured(seconds)
    if own["as_json"]:
        print_json(plan.as_dict())
    else:
        show_plan(plan)


def _subject(own: dict[str, Any], config: TrainConfig, adapter: Any, device: str) -> tuple[Subject, Dataset | None]:
    """What is planned, and its training data where they are given.

    Raises
    ------
    ConfigError
        There is neither a model nor a shape, or both.
    """
    from dataclasses import replace

    from ..planning import subject_of_path, subject_of_shape

    model, shape = own.get("model"), own.get("shape")
    if (model is None) == (shape is None):
        got = "both" if model else "neither"
        raise ConfigError(f"model: expected --model PATH or --shape NAME, got {got}")
    if shape is not None:
        if own.get("data"):
            raise ConfigError("data: expected --model beside it, whose tokenizer reads them, got --shape; leave it out")
        return subject_of_shape(shape, config, adapter, device), None
    subject = subject_of_path(model, config, adapter, device, **task_of(own, config.seed))
    if not own.get("data"):
        return subject, None
    if own.get("chat_template"):
        from ..text.chosen_template import use_chat_template

        use_chat_template(subject.model, own["chat_template"])
    data, _, _ = open_data(own, subject.model.tokenizer, config)
    return replace(subject, lengths=[len(sample) for sample in data.samples]), data
