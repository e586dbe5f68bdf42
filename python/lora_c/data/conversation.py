"""Conversations to tokens: which of them belong to the assistant is found by rendering, never by searching strings.

1. A template that marks the assistant's text itself ({% generation %}) is believed.
2. Otherwise, for assistant turn i, messages[:i] are rendered with the generation prompt (what the model will see) and
   messages[:i+1] without; the second text begins with the first, and what it adds is the turn. The end-of-turn marker is part
   of it and carries loss. All turns lie in one sequence where the text of the whole conversation goes on from each of them.
3. Some templates rewrite earlier messages as the conversation grows (they drop past reasoning, or move the system message to
   the last question). Then every turn becomes a sequence of its own: the prompt that the model will see, and the answer as the
   template writes it. An answer begins where the rendered text begins to depend on what the assistant says.
4. Some templates drop the reasoning of the last answer, too, and open its tag in the generation prompt. The answer is then
   written as the model has to say it after that prompt (`turns.py`).

A token that holds any character of an answer carries loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .lost_parts import lost_parts, unwritten_roles, writes_tools
from .messages import Message, without_doubled_ends
from .opening import render_closed
from .turns import Turn, turn_of, with_reasoning

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

Pair = tuple[list[int], list[float]]
Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class Conversation:
    """(token ids, loss mask) of a conversation: one pair as a rule, one per turn where the template rewrites history.

    `left_out` names what the chat template does not write; `empty`: it writes nothing that the assistant says.
    """

    pairs: list[Pair]
    left_out: list[str]
    empty: bool


@dataclass
class _Sequence:
    """A text, where its learned turns lie, and which messages they are."""

    text: str
    spans: list[Spans]
    turns: list[int]

    def text_around_answers(self) -> str:
        edges = [edge for spans in self.spans for span in spans for edge in span]
        return "".join(self.text[begin:end] for begin, end in zip([0, *edges[1::2]], [*edges[::2], None], strict=True))

    def answers(self) -> Iterator[tuple[int, str]]:
        for i, spans in zip(self.turns, self.spans, strict=True):
            yield i, "".join(self.text[begin:end] for begin, end in spans)


def conversation(messages: list[Message], tokenizer: Tokenizer, tools: list[Any] | None, learned: list[int]) -> Conversation:
    """Return the sequences of a conversation, of which the turns `learned` carry loss.

    Raises
    ------
    DataError
        The model has no chat template, or it refuses the messages, or its turns cannot be told apart.
    """
    if tokenizer.chat_template is None:
        raise DataError(
            "expected a model with a chat template for 'messages', got none; use 'prompt'/'completion' data or add "
            "chat_template.jinja to the model folder"
        )
    messages = without_doubled_ends(messages, tokenizer, tools)
    sequences = _marked(messages, tokenizer, tools, learned) or _found(messages, tokenizer, tools, learned)
    left_out, n_written = _compare(sequences, messages)
    last = sequences[-1]
    shown = messages if len(sequences) == 1 else messages[: last.turns[-1]]
    left_out |= {f"messages of the role {role[:40]!r}" for role in unwritten_roles(shown, last.text)}
    if tools and not writes_tools(tools, last.text_around_answers()):
        left_out.add("tools")
    pairs = [_pair(sequence.text, [s for spans in sequence.spans for s in spans], tokenizer) for sequence in sequences]
    return Conversation(pairs, sorted(left_out), n_written == 0)


def _compare(sequences: Sequence[_Sequence], messages: list[Message]) -> tuple[set[str], int]:
    """What of the learned answers is in no sequence, and how many parts are."""
    lost: set[str] = set()
    n_written = 0
    for sequence in sequences:
        for i, answer in sequence.answers():
            kinds, n = lost_parts(messages[i], answer)
            lost.update(f"{kind} of answers" for kind in kinds)
            n_written += n
    return lost, n_written


def _marked(
    messages: list[Message], tokenizer: Tokenizer, tools: list[Any] | None, learned: list[int]
) -> list[_Sequence] | None:
    """Sequences of a template that marks the assistant's text; None where it does not."""
    marked = tokenizer.marked_chat(messages, tools)
    if marked is None:
        return None
    text, spans = marked
    of_turn = _spans_of_turns(text, spans, messages, tokenizer, tools)
    whole = _Sequence(text, [of_turn[i] for i in learned], learned)
    if not _n_lost(whole, messages):
        return [whole]
    apart = [_marked_turn(messages, i, tokenizer, tools) for i in learned]
    return apart if sum(_n_lost(sequence, messages) for sequence in apart) < _n_lost(whole, messages) else [whole]


def _marked_turn(messages: list[Message], i: int, tokenizer: Tokenizer, tools: list[Any] | None) -> _Sequence:
    """A turn alone: templates that drop past reasoning keep that of the last turn; those that do not are helped."""
    text, spans = tokenizer.marked_chat(messages[: i + 1], tools) or ("", [])
    alone = _Sequence(text, [_spans_of_turns(text, spans, messages[: i + 1], tokenizer, tools)[i]], [i])
    if not _n_lost(alone, messages):
        return alone
    turn = with_reasoning(turn_of(messages, i, tokenizer, tools), messages, tokenizer, tools)
    helped = _Sequence(turn.text, [[(turn.begin, len(turn.text))]], [i])
    return helped if _n_lost(helped, messages) < _n_lost(alone, messages) else alone


def _spans_of_turns(
    text: str, spans: Spans, messages: list[Message], tokenizer: Tokenizer, tools: list[Any] | None
) -> dict[int, Spans]:
    """The marked spans of each assistant turn: one, or all up to where the conversation up to that turn ends in the text."""
    assistant = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if len(spans) == len(assistant):
        return {i: [span] for i, span in zip(assistant, spans, strict=True)}
    of_turn, begin = {}, 0
    for i in assistant:
        up_to_here = tokenizer.marked_chat(messages[: i + 1], tools) if i != assistant[-1] else None
        end = len(text) if up_to_here is None else len(commonprefix([text, up_to_here[0]]))
        of_turn[i] = [span for span in spans if begin <= span[0] < end]
        begin = max(begin, end)
    return of_turn


def _n_lost(sequence: _Sequence, messages: list[Message]) -> int:
    return sum(len(lost_parts(messages[i], answer)[0]) for i, answer in sequence.answers())


def _found(messages: list[Message], tokenizer: Tokenizer, tools: list[Any] | None, learned: list[int]) -> list[_Sequence]:
    whole = render_closed(tokenizer, messages, tools)
    turns = [with_reasoning(turn_of(messages, i, tokenizer, tools), messages, tokenizer, tools) for i in learned]
    spans = [_span_in(whole, turn, tokenizer) for turn in turns]
    if all(span is not None for span in spans):
        return [_Sequence(whole, [[span] for span in spans if span is not None], learned)]
    return [_Sequence(turn.text, [[(turn.begin, len(turn.text))]], [turn.index]) for turn in turns]


def _span_in(whole: str, turn: Turn, tokenizer: Tokenizer) -> tuple[int, int] | None:
    """Where the turn lies in the whole conversation; some templates write the end token after the last turn only."""
    eos = tokenizer.special_tokens.get("eos_token") or ""
    for end in (len(turn.text), len(turn.text.removesuffix(eos))):
        if end > turn.begin and whole.startswith(turn.text[:end]):
            return turn.begin, end
    return None


def _pair(text: str, spans: Spans, tokenizer: Tokenizer) -> Pair:
    """Token ids, and a mask of the tokens that reach into a span; spans and tokens stand in order."""
    ids, offsets = tokenizer.encode_with_offsets(text, add_special_tokens=False)
    mask, waiting = [], list(reversed(spans))
    for begin, end in offsets:
        while waiting and begin >= waiting[-1][1]:
            waiting.pop()
        mask.append(float(bool(waiting) and end > waiting[-1][0]))
    return list(ids), mask
