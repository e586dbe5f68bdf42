"""One assistant turn: the text that the model will see before it, and the text that it has to say."""

from __future__ import annotations

from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..text.template_messages import REASONING, text_of
from .lost_parts import THINKING, lost_parts
from .messages import Message
from .opening import opening_behind_answers, render_closed

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Turn:
    """Text up to the end of an assistant turn, where the turn begins in it, and which message it is."""

    text: str
    begin: int
    index: int


def turn_of(messages: list[Message], i: int, tokenizer: Tokenizer, tools: list[Any] | None) -> Turn:
    """Return the turn as the template writes it.

    Raises
    ------
    DataError
        The template refuses the messages, or its text does not show where the answer begins.
    """
    text = render_closed(tokenizer, messages[: i + 1], tools)
    try:
        prompt = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, tools=tools)
    except DataError:  # some templates refuse to begin with the assistant, or with nothing
        prompt = None
    if prompt is not None and text.startswith(prompt) and len(text) > len(prompt):
        return Turn(text, len(prompt), i)
    if prompt is not None and (n_shared := _before_opening(prompt, text)):
        return Turn(prompt + text[n_shared:], len(prompt), i)
    begin = _answer_begin(messages[:i], text, tokenizer, tools)
    if prompt is None:
        return Turn(text, begin, i)
    return Turn(prompt + text[begin:], len(prompt), i)


def with_reasoning(turn: Turn, messages: list[Message], tokenizer: Tokenizer, tools: list[Any] | None) -> Turn:
    """The turn as the model has to say it, where the template drops its reasoning or leaves open what the prompt opens."""
    message, prompt, answer = messages[turn.index], turn.text[: turn.begin], turn.text[turn.begin :]
    tags = _opened(prompt)
    if "reasoning" not in lost_parts(message, answer)[0]:
        if tags is None or tags[1] in answer:
            return turn
        gap = "\n" if prompt.endswith("\n") else "\n\n"
        return Turn(f"{prompt}{gap}{tags[1]}\n\n{answer}", turn.begin, turn.index)  # an answer that needed no reasoning
    said, end = _said(message, prompt, tags), _end_of_answers(messages[: turn.index], tokenizer, tools)
    if said is None or end is None or message.get("tool_calls"):
        return turn
    return Turn(prompt + said + end, turn.begin, turn.index)


def _said(message: Message, prompt: str, tags: tuple[str, str] | None) -> str | None:
    """What the assistant says after the prompt, its reasoning included; None where the template has no place for it."""
    content = text_of(message.get("content"))
    reasoning = next((message[key] for key in REASONING if isinstance(message.get(key), str)), None)
    if reasoning is None:
        return content if tags is None else _after_opening(content, tags[0], prompt)
    if tags is None:
        return None
    gap = "" if prompt.endswith("\n") else "\n"
    return f"{gap}{reasoning.strip()}\n{tags[1]}\n\n{content}"


def _after_opening(content: str, opening: str, prompt: str) -> str:
    """The content without the opening tag (and the line break after it) that the prompt ends with."""
    if not content.lstrip().startswith(opening):
        return content
    rest = content.lstrip().removeprefix(opening)
    written = prompt[prompt.rindex(opening) + len(opening) :]
    return rest.removeprefix(written)


def _opened(prompt: str) -> tuple[str, str] | None:
    """The tags of reasoning that a prompt opens and the answer has to close."""
    return next((tags for tags in THINKING if prompt.rstrip().endswith(tags[0])), None)


def _before_opening(prompt: str, text: str) -> int:
    """Length of a prompt without the tag that it opens, where the text goes on from there without any; else 0."""
    if (tags := _opened(prompt)) is None:
        return 0
    before = prompt.rstrip().removesuffix(tags[0])
    answer = text.removeprefix(before).lstrip()
    return len(before) if text.startswith(before) and answer and not answer.startswith(tags) else 0


def _two_answers(before: list[Message], tokenizer: Tokenizer, tools: list[Any] | None) -> tuple[str, str]:
    one, other = (
        tokenizer.apply_chat_template([*before, {"role": "assistant", "content": answer}], tools=tools) for answer in "01"
    )
    return one, other


def _end_of_answers(before: list[Message], tokenizer: Tokenizer, tools: list[Any] | None) -> str | None:
    """What the template writes after an answer, whatever the answer is."""
    one, other = _two_answers(before, tokenizer, tools)
    header = commonprefix([one, other])
    end = one[len(header) + 1 :]
    if (one, other) != (f"{header}0{end}", f"{header}1{end}"):
        return None
    return end.removesuffix(opening_behind_answers(tokenizer, tools))


def _answer_begin(before: list[Message], text: str, tokenizer: Tokenizer, tools: list[Any] | None) -> int:
    """Length of what the template writes before an answer, whatever the answer is."""
    one, other = _two_answers(before, tokenizer, tools)
    header = commonprefix([one, other])
    question = next((text_of(m.get("content")).strip() for m in reversed(before) if m["role"] == "user"), "")
    if one == other or not text.startswith(header) or len(text) == len(header) or question not in header:
        raise DataError(
            f"expected the chat template to write turn {len(before)} after the text before it, got another text; use "
            "'prompt'/'completion' data for this model"
        )
    return len(header)
