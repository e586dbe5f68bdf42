"""What `lora-c train`, `sweep` and `compare` do before they load a model: they read data, and refuse a run that cannot fit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..configs import AdapterConfig, StackConfig, TrainConfig
from .data_options import open_data

if TYPE_CHECKING:
    from ..data import Dataset


def read_and_forecast(
    own: dict[str, Any], config: TrainConfig, lora: AdapterConfig | StackConfig, task: dict[str, Any]
) -> tuple[Dataset, Dataset | None, dict[str, int]] | None:
    """Return the data of a run that fits, as `open_data` does; None where headers alone do not say what it takes.

    Raises
    ------
    FitError
        It takes more memory than is free; the message names the change that makes it fit.
    """
    from .. import _core
    from ..model.device_list import open_device
    from ..planning import subject_of_path
    from ..planning.plan import place_named
    from ..planning.remedies import refuse_what_cannot_fit
    from ..text.chosen_template import use_chat_template

    if own.get("adapter") or own.get("resize_embedding"):  # an adapter that the run goes on from, rows that are added
        return None
    place = place_named(open_device(own.get("device")))  # opened first: what cannot be used is not planned for
    subject = subject_of_path(own["model"], config, lora, place.device, **task)
    if own.get("chat_template"):
        use_chat_template(subject.model, own["chat_template"])
    read = open_data(own, subject.model.tokenizer, config)
    left = place.free if place.is_device else _core.memory_left("", True)  # with swap: slow is not impossible
    refuse_what_cannot_fit(replace(subject, lengths=[len(s) for s in read[0].samples]), left, maps_files=not place.is_device)
    return read
