"""The tasks by name, and one of them done by a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._core import DECODE_BATCH
from ..configs import GenerationConfig
from ..configs.task_names import WRITTEN
from ..generation.batch import Batch
from .likelihoods import Progress, choice_scores, perplexity_scores
from .normalizing import normalizer
from .overlap import Bleu, RougeL, text_scores
from .prompts import choice_ids, question_ids
from .scores import Score

if TYPE_CHECKING:
    from ..data import Dataset
    from ..data.questions import Question
    from ..model.model import Model

NORMALIZED = {"exact-match": ("space",), "f1": ("squad",)}  # and what their texts go through where nobody says
_LIBRARIES: dict[str, Callable[[], object]] = {"rouge-l": RougeL, "bleu": Bleu}


@dataclass(frozen=True)
class TaskOptions:
    """How a task is done.

    Attributes
    ----------
    normalize : list of str
        Steps of `normalizing.STEPS` or presets; empty: the task's own.
    as_chat : bool
        Whether prompts that are texts become a user's turn in the model's chat template.
    generation : GenerationConfig
        How answers are written.
    max_tokens : int
        Of sequences that share a pass.
    """

    normalize: Sequence[str] = ()
    as_chat: bool = False
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    max_tokens: int = 2048


@dataclass(frozen=True)
class Outcome:
    """What came of a task: scores by name, and what was found of each example in its order."""

    scores: dict[str, Score]
    examples: list[dict[str, Any]]


def check_task(task: str, options: TaskOptions) -> None:
    """Refuse before anything is loaded what a task cannot be done with.

    Raises
    ------
    ConfigError
        The package of its score is not installed, or a normalizer is unknown.
    """
    if task in WRITTEN:
        normalizer(options.normalize)
    if task in _LIBRARIES:
        _LIBRARIES[task]()


def run_task(
    model: Model,
    task: str,
    given: Dataset | Sequence[Question],
    options: TaskOptions,
    progress: Progress = lambda done, total: None,
) -> Outcome:
    """Do a task with the model as it is, with the adapter that is in use or without one.

    Parameters
    ----------
    task : str
        One of `configs.task_names.TASKS`.
    given : Dataset or list of Question
        A data set for perplexity, questions for the others.

    Raises
    ------
    ConfigError
        The package of the score is not installed, or a normalizer is unknown.
    DataError
        A question does not fit into the context.
    """
    if task == "perplexity":
        return Outcome(*perplexity_scores(model, list(given), options.max_tokens, progress))  # type: ignore[arg-type]
    questions: list[Question] = list(given)  # type: ignore[arg-type]
    if task == "multiple-choice":
        pairs = [choice_ids(model, question, options.as_chat) for question in questions]
        return Outcome(*choice_scores(model, questions, pairs, options.max_tokens, progress))
    normalize = normalizer(options.normalize or NORMALIZED.get(task, ()))
    answers = _answers(model, [question_ids(model, question, options.as_chat) for question in questions], options, progress)
    scores, found = text_scores(task, answers, [question.references for question in questions], normalize)
    return Outcome(scores, [{"answer": answer, **one} for answer, one in zip(answers, found, strict=True)])


def _answers(model: Model, prompts: Sequence[list[int]], options: TaskOptions, progress: Progress) -> list[str]:
    config = options.generation
    longest = max(min(len(ids) + config.max_new_tokens, model.context_length) for ids in prompts)
    batch = Batch(model, min(len(prompts), DECODE_BATCH), longest)
    answers = [batch.add(ids, config) for ids in prompts]
    done = 0
    while batch:
        if ended := batch.step():
            done += len(ended)
            progress(done, len(prompts))
        if (failed := next((answer.error for answer in ended if answer.error is not None), None)) is not None:
            raise failed
    return [answer.text for answer in answers]
