"""From a language model to a classifier, in memory: another head, another config.json."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import AdapterError
from ..families.architectures import Architecture
from ..families.labels import Labels, as_classifier
from ..notices import tell
from .score import fresh_score

if TYPE_CHECKING:
    from .model import Model


def classifier_config(config: Mapping[str, Any], architecture: Architecture, labels: Labels) -> dict[str, Any]:
    """The config.json of a classifier from that of its language model."""
    return as_classifier(config, architecture.family.architecture, labels)


def options_of_task(labels: Labels | None, seed: int) -> dict[str, Any]:
    """What `load_model` is given to make the same classifier again, as JSON holds it; nothing for a language model."""
    if labels is None:
        return {}
    return {"task_type": "SEQ_CLS", "id2label": list(labels.names), "problem_type": labels.problem_type, "seed": seed}


def make_classifier(model: Model, labels: Labels, seed: int = 0) -> None:
    """Put a fresh score in the place of a model's head.

    Raises
    ------
    AdapterError
        The model has adapters, which are of a language model.
    """
    if model.adapter_names or model.is_merged:
        raise AdapterError("task_type: expected a model without adapters, got one; load the base again")
    config = classifier_config(model.config, model.architecture, labels)
    shape = (len(labels), int(model.architecture.decoder_kwargs["hidden_size"]))
    weights = model.weights | {"lm_head": fresh_score(config, shape, seed)}
    stored = model.stored_dtypes | {"lm_head": np.dtype(np.float32)}
    records = {name: record for name, record in model.quant_records.items() if name != "lm_head"}
    made = model.with_weights(weights, stored, records, config)
    made.requantization_error, made.added_tokens = model.requantization_error, model.added_tokens
    made.load_options = model.load_options | options_of_task(labels, seed)
    vars(model).update(vars(made))


@contextmanager
def classified_for(model: Model, path: str | os.PathLike[str]) -> Iterator[None]:
    """Make a classifier of a language model where an adapter is of one, with as many labels as its score has rows.

    It is what it was where the adapter is refused in the block.
    """
    from ..adapters.classifiers import labels_of_adapter

    found = labels_of_adapter(path) if model.labels is None else None
    if found is None:
        yield
        return
    labels, named = found
    before = dict(vars(model))
    make_classifier(model, labels)
    try:
        yield
    except BaseException:
        vars(model).update(before)
        model.tell_tokenizer()
        raise
    if not named:
        what = f"{len(labels)} labels ({labels.problem_type})"
        tell(f"{os.fspath(path)}: an adapter of a classifier, which does not say what its {what} are: {labels.names[0]}, …")
