"""The options that make a classifier of a language model, and the labels that are found where nobody names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import ConfigError
from ..families.labels import PROBLEM_TYPES
from .flag_types import FreeText

if TYPE_CHECKING:
    from ..families.labels import Labels

F = TypeVar("F", bound=Callable[..., Any])
TASK_TYPES = ("CAUSAL_LM", "SEQ_CLS")
_NAMES = ("num_labels", "id2label", "problem_type")


class LabelNames(FreeText):
    """Names with commas between them; a list or a mapping from a file."""

    name = "A,B,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str):
            return [name.strip() for name in value.split(",") if name.strip()]
        return {str(key): str(name) for key, name in value.items()} if isinstance(value, dict) else list(map(str, value))


def task_options(function: F) -> F:
    """Add --task-type, --num-labels, --id2label and --problem-type."""
    options = (
        click.option(
            "--task-type", type=click.Choice(TASK_TYPES),
            help="SEQ_CLS: a classifier, whose data are texts with labels; default: what the model is.",
        ),
        click.option("--num-labels", type=click.IntRange(1), help="Labels of a classifier; default: those of the data."),
        click.option("--id2label", type=LabelNames(), help="Their names, in the order of their numbers."),
        click.option(
            "--problem-type", type=click.Choice(PROBLEM_TYPES), metavar="NAME", help=f"One of {', '.join(PROBLEM_TYPES)}."
        ),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def task_of(own: dict[str, Any], seed: int) -> dict[str, Any]:
    """What `load_model` is told of the task; labels that are found in the data are put into `own`, so that they are kept.

    Raises
    ------
    ConfigError
        Labels are named for a language model.
    DataError
        The labels of the data cannot be those of one classifier.
    """
    if own.get("task_type") != "SEQ_CLS":
        given = next((name for name in _NAMES if own.get(name) is not None), None)
        if given is not None:
            raise ConfigError(f"{given}: expected --task-type SEQ_CLS beside it, got none; a language model has no labels")
        return {"task_type": own["task_type"]} if own.get("task_type") else {}
    named = {name: own[name] for name in _NAMES if own.get(name) is not None}
    if _has_labels(own):
        return {"task_type": "SEQ_CLS", **named} if own.get("adapter") is None else {}
    if named.get("num_labels") is None and named.get("id2label") is None:
        found = _found(own)
        own |= {"num_labels": len(found)} if found.are_numbered else {"id2label": list(found.names)}
        own["problem_type"] = found.problem_type
        click.echo(f"labels    {describe_labels(found)}, found in the training data", err=True)
    return {"task_type": "SEQ_CLS", **{name: own.get(name) for name in _NAMES}, "seed": seed}


def describe_labels(labels: Labels) -> str:
    """The labels in one line."""
    from ..errors import shorten

    what = f"{len(labels):,} labels" if labels.are_numbered else shorten(labels.names, 8)
    return f"{what} ({labels.problem_type})"


def _has_labels(own: dict[str, Any]) -> bool:
    """Whether the model, or the adapter that the run goes on from, says what its labels are."""
    from ..adapters.classifiers import labels_of_adapter
    from ..checkpoints.model_names import find
    from ..families.labels import is_classifier
    from ..model.opening import open_checkpoint

    if own.get("adapter") and labels_of_adapter(find(own["adapter"], "adapter", None)) is not None:
        return True
    with open_checkpoint(own["model"]) as checkpoint:
        return is_classifier(checkpoint.config)


def _found(own: dict[str, Any]) -> Labels:
    from ..data import find_labels

    options: dict[str, Any] = {"columns": own.get("columns"), "limit": own.get("limit"), "skip_bad": own.get("skip_bad") or 0}
    return find_labels(list(own["data"]), problem_type=own.get("problem_type"), **options)
