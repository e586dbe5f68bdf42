"""Conversations to tokens: which of them belong to the assistant is found by rendering, never by searching strings.

1. A template that marks the assistant's text itself ({% generation %}) is believed.
2. Otherwise, for assistant turn i, messages[:i] are rendered with the generation prompt (what the model will see) and
   messages[:i+1] without; the second text begins with the first, and what it adds is the turn. The end-of-turn marker is part
   of it and carries loss. All turns lie in one sequence where the text of the whole conversation goes on from each of them.
3. Some templates rewrite earlier messages as the conversation grows (they drop past reasoning, or move the system message to
   the last question). Then every turn becomes a sequence of its own: the prompt that the model will see, and the answer as the
   template writes it. An answer begins where the rendered text begins to depend on what the assistant says.
"""

from __future__ import annotations

from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

Pair = tuple[list[int], list[float]]


@dataclass(frozen=True)
class _Turn:
    """Text up to the end of an assistant turn, and where the turn begins in it."""

    text: str
    begin: int


def assistant_samples(messages: Any, tokenizer: Tokenizer, tools: list[Any] | None = None, n_prompt: int = 0) -> list[Pair]:
    """Return (token ids, loss mask) of a conversation: one pair as a rule, one per turn where the template rewrites history.

    Parameters
    ----------
    n_prompt : int
        The first messages, whose assistant turns carry no loss.
    """
    _check_messages(messages)
    if tokenizer.chat_template is None:
        raise DataError(
            "expected a model with a chat template for 'messages', got none; use 'prompt'/'completion' data or add "
            "chat_template.jinja to the model folder"
        )
    assistant = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    turns = [i for i in assistant if i >= n_prompt and messages[i].get("weight") != 0]
    if not turns:
        raise DataError("expected at least one message with the role 'assistant' to learn from, got none")
    if turns == assistant:
        marked = tokenizer.marked_chat(messages, tools)
        if marked is not None:
            return [_mask_spans(*marked, tokenizer)]
    whole = tokenizer.apply_chat_template(messages, tools=tools)
    found = [_turn(messages, i, tokenizer, tools) for i in turns]
    spans = [_span_in(whole, turn, tokenizer) for turn in found]
    if all(span is not None for span in spans):
        return [_mask_spans(whole, [span for span in spans if span is not None], tokenizer)]
    return [_mask_spans(turn.text, [(turn.begin, len(turn.text))], tokenizer) for turn in found]


def _turn(messages: list[dict[str, Any]], i: int, tokenizer: Tokenizer, tools: list[Any] | None) -> _Turn:
    text = tokenizer.apply_chat_template(messages[: i + 1], tools=tools)
    try:
        prompt: str | None = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, tools=tools)
    except DataError:  # some templates refuse to begin with the assistant, or with nothing
        prompt = None
    if prompt is not None and text.startswith(prompt) and len(text) > len(prompt):
        return _Turn(text, len(prompt))
    begin = _answer_begin(messages[:i], text, tokenizer, tools)
    if prompt is None:
        return _Turn(text, begin)
    return _Turn(prompt + text[begin:], len(prompt))


def _answer_begin(before: list[dict[str, Any]], text: str, tokenizer: Tokenizer, tools: list[Any] | None) -> int:
    """Length of what the template writes before an answer, whatever the answer is."""
    one, other = (
        tokenizer.apply_chat_template([*before, {"role": "assistant", "content": answer}], tools=tools) for answer in "01"
    )
    header = commonprefix([one, other])
    question = next((str(m.get("content") or "").strip() for m in reversed(before) if m["role"] == "user"), "")
    if one == other or not text.startswith(header) or len(text) == len(header) or question not in header:
        raise DataError(
            f"expected the chat template to write turn {len(before)} after the text before it, got another text; use "
            "'prompt'/'completion' data for this model"
        )
    return len(header)


def _span_in(whole: str, turn: _Turn, tokenizer: Tokenizer) -> tuple[int, int] | None:
    """Where the turn lies in the whole conversation; some templates write the end token after the last turn only."""
    eos = tokenizer.special_tokens.get("eos_token") or ""
    for end in (len(turn.text), len(turn.text.removesuffix(eos))):
        if end > turn.begin and whole.startswith(turn.text[:end]):
            return turn.begin, end
    return None


def _mask_spans(text: str, spans: list[tuple[int, int]], tokenizer: Tokenizer) -> Pair:
    ids, offsets = tokenizer.encode_with_offsets(text, add_special_tokens=False)
    mask = [float(any(b <= begin < e and end > begin for b, e in spans)) for begin, end in offsets]
    return list(ids), mask


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"expected 'messages' to be a list that is not empty, got {str(messages)[:60]!r}")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(f"expected message {i} to have 'role' and 'content', got {str(message)[:60]!r}")
        if message.get("content") is None and not message.get("tool_calls"):
            raise DataError(f"expected message {i} to have 'content' or 'tool_calls', got {str(message)[:60]!r}")
