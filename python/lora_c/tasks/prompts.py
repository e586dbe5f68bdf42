"""Questions to token ids: what a model reads before it answers, and the choices that may follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import DataError
from ..text.continuation import continuation_ids
from ..text.prompts import message_ids, prompt_ids
from ..text.text_ids import continued_prompt_ids, prompt_token_ids

if TYPE_CHECKING:
    from ..data.questions import Question
    from ..model.model import Model

T = TypeVar("T")
Continued = tuple[list[int], list[int]]  # ids of a prompt, and of what follows it


def question_ids(model: Model, question: Question, as_chat: bool) -> list[int]:
    """Return the ids that the answer begins after.

    Parameters
    ----------
    as_chat : bool
        Whether a prompt that is a text becomes a user's turn in the model's chat template.

    Raises
    ------
    DataError
        They leave the context no room; the message begins with the question's place.
    """
    try:
        ids = _ids(model, question, as_chat)
        return prompt_ids(model, ids)  # which checks them
    except DataError as error:
        raise DataError(f"{question.where}: {error}") from None


def choice_ids(model: Model, question: Question, as_chat: bool) -> list[Continued]:
    """Return the prompt's ids and those of each choice behind it, without an end.

    Raises
    ------
    DataError
        A choice has no token, or both are longer than the context; the message begins with the question's place.
    """
    pairs = _continued(model, question, as_chat)
    for i, (before, choice) in enumerate(pairs):
        if not before or not choice:
            raise DataError(f"{question.where}: expected a token or more in the prompt and in choice {i}, got none")
        n = len(before) + len(choice)
        if n > model.context_length:
            raise DataError(
                f"{question.where}: expected at most the {model.context_length} tokens of the model's context, got {n} of the "
                f"prompt with choice {i}; shorten it, or leave such examples out (--skip-bad)"
            )
    return pairs


def _continued(model: Model, question: Question, as_chat: bool) -> list[Continued]:
    if not isinstance(question.prompt, str) or as_chat:
        ids = question_ids(model, question, as_chat)
        return [(ids, _at(question, continuation_ids, model.tokenizer, choice)) for choice in question.choices]
    words = [question.between + choice for choice in question.choices]
    return [_at(question, continued_prompt_ids, model.tokenizer, question.prompt, text) for text in words]


def _at(question: Question, encode: Callable[..., T], *given: Any) -> T:
    """Call a function whose refusals do not know the question."""
    try:
        return encode(*given)
    except DataError as error:
        raise DataError(f"{question.where}: {error}") from None


def _ids(model: Model, question: Question, as_chat: bool) -> list[int]:
    if isinstance(question.prompt, list):
        return message_ids(model, question.prompt, list(question.tools) or None)
    if as_chat:
        return message_ids(model, [{"role": "user", "content": question.chat_prompt or question.prompt}])
    return prompt_token_ids(model.tokenizer, question.prompt)
