"""`lora-c eval --task`: what is read, who answers, what is compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..configs import GenerationConfig
from ..configs.task_names import WRITTEN
from ..errors import ConfigError, shorten
from ..notices import tell
from .data_options import describe_data, describe_questions, reading
from .generate import open_model
from .json_output import print_json
from .options import take
from .task_report import examples_file, score_lines, score_values, task_progress

if TYPE_CHECKING:
    from ..data import FoundFiles
    from ..model.model import Model
    from ..tasks import Outcome, TaskOptions
    from ..tasks.scores import Difference


def evaluate_task(own: dict[str, Any], task: str, files: FoundFiles) -> None:
    """Load, answer, compare, report.

    Raises
    ------
    ConfigError, DataError
        With the option, or with file and line.
    """
    from ..files.os_errors import make_folder
    from ..tasks import check_task
    from ..text.prompts import need_language_model

    options = task_options_of(own)
    check_task(task, options)
    if own.get("output"):
        make_folder(Path(own["output"]).parent)
    model = open_model(own)
    need_language_model(model, f"task {task}")
    if options.as_chat and model.tokenizer.chat_template is None:
        raise ConfigError(
            "apply_chat_template: expected a model with a chat template, got none; leave it out, or give --chat-template"
        )
    if own.get("baseline") not in (None, True):  # an adapter that cannot be used is said before the work
        _take(model, own["baseline"])
        _take(model, own["adapter"])
    with examples_file(own.get("output")) as write:  # a place that cannot be written to is said before the work
        given = read_task(own, task, files, model, options)
        outcome, baseline = _outcomes(own, task, given, model, options)
        differences = _differences(own, outcome, baseline)
        write(list(given), outcome, baseline)
    if not own["as_json"]:
        click.echo("\n".join(score_lines(outcome, baseline, differences, _names(own))))
        return
    from ..generation.choosing import precision_of

    precision = precision_of(options.generation) if task in WRITTEN else model.decoder.precision
    values = {"task": task, "examples": len(outcome.examples), **score_values(outcome, baseline, differences)}
    if baseline is not None:
        values |= {"resamples": own["resamples"], "seed": own["seed"]}
        values["baseline_adapter"] = None if own["baseline"] is True else own["baseline"]
    print_json(values | {"precision": precision, "output": own.get("output")})


def task_options_of(own: dict[str, Any]) -> TaskOptions:
    from ..tasks import TaskOptions

    generation = GenerationConfig(**take(dict(own), GenerationConfig, skip=("seed",)))
    return TaskOptions(own.get("normalize") or (), bool(own.get("apply_chat_template")), generation, own["batch_tokens"])


def read_task(own: dict[str, Any], task: str, files: FoundFiles, model: Model, options: TaskOptions) -> Any:
    """A data set for perplexity, questions for the other tasks."""
    from ..data import load_files
    from ..data.fits import fit_to_model
    from ..data.reading_questions import load_questions
    from ..data.standard_input import name_of
    from ..tasks.prompts import choice_ids, question_ids

    how: dict[str, Any] = {"limit": own["limit"]} | reading(own)
    if task == "perplexity":
        dataset = load_files(files, model.tokenizer, max_seq_length=own["max_seq_length"], **how)
        describe_data("data", dataset, err=own["as_json"])
        return fit_to_model(dataset, model, "data")
    fits = choice_ids if task == "multiple-choice" else question_ids
    found = load_questions(
        files, model.tokenizer, with_choices=task == "multiple-choice", check=lambda q: fits(model, q, options.as_chat), **how
    )
    describe_questions(shorten(map(name_of, files.taken), 2), found, err=own["as_json"])
    plain = sum(isinstance(question.prompt, str) for question in found.asked)
    if plain and model.tokenizer.chat_template is not None and not options.as_chat:
        asked = "1 prompt is asked as it stands" if plain == 1 else f"{plain:,} prompts are asked as they stand"
        tell(
            f"data: {asked}, without the model's chat template, as training reads them; "
            "--apply-chat-template asks them as a user's turn"
        )
    return found.asked


def _outcomes(
    own: dict[str, Any], task: str, given: Any, model: Model, options: TaskOptions
) -> tuple[Outcome, Outcome | None]:
    """What came of it with the adapter, and of the base alone where it is asked for."""
    from ..tasks import run_task

    label = "answers" if task in WRITTEN else "scored"
    if not own.get("baseline"):
        return run_task(model, task, given, options, task_progress(label, "")), None
    outcome = run_task(model, task, given, options, task_progress(label, " with the adapter"))
    if own["baseline"] is not True:
        _take(model, own["baseline"])
        return outcome, run_task(model, task, given, options, task_progress(label, " with the other adapter"))
    with model.disable_adapter():
        return outcome, run_task(model, task, given, options, task_progress(label, " of the base"))


def _take(model: Model, adapter: str) -> None:
    """Use another adapter in the place of all that the model has; prompts stay as the first one's template has them."""
    for name in reversed(model.adapter_names):
        if name in model.adapter_names:  # not one that went with its stack
            model.delete_adapter(name)
    model.load_adapter(adapter)


def _names(own: dict[str, Any]) -> tuple[str, str]:
    """What the two sides are called: of two adapters their folders, as short as tells them apart."""
    if own.get("baseline") in (None, True):
        return "base", "adapter"
    first, second = Path(own["baseline"]), Path(own["adapter"])
    return (str(first), str(second)) if first.name == second.name else (first.name, second.name)


def _differences(own: dict[str, Any], outcome: Outcome, baseline: Outcome | None) -> dict[str, Difference]:
    from ..tasks.scores import paired_difference

    if baseline is None:
        return {}
    return {
        name: paired_difference(baseline.scores[name], score, resamples=own["resamples"], seed=own["seed"])
        for name, score in outcome.scores.items()
    }
