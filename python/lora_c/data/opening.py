"""Chat templates that open the next answer though nobody asks for it: the opening is no part of the answer before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..errors import DataError
from ..text.ends import turn_end

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

_QUESTION, _ANSWER = "Question", "Answer"
_found: WeakKeyDictionary[Tokenizer, dict[Any, str]] = WeakKeyDictionary()


def render_closed(tokenizer: Tokenizer, messages: list[dict[str, Any]], tools: list[Any] | None) -> str:
    """Return the text of a conversation up to the end of its last answer."""
    return tokenizer.apply_chat_template(messages, tools=tools).removesuffix(opening_behind_answers(tokenizer, tools))


def opening_behind_answers(tokenizer: Tokenizer, tools: list[Any] | None) -> str:
    """Return what the template writes behind every answer to open the next one; it is looked for once."""
    known = _found.setdefault(tokenizer, {})
    key = (tokenizer.chat_template, tools is None)
    if key not in known:
        known[key] = _look(tokenizer, tools)
    return known[key]


def _look(tokenizer: Tokenizer, tools: list[Any] | None) -> str:
    messages = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        opened = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tools=tools)
        if opened != tokenizer.apply_chat_template(messages[:1], tools=tools):
            return ""
        _, found, rest = tokenizer.apply_chat_template(messages, tools=tools).rpartition(_ANSWER)
    except DataError:  # a template that wants other messages says nothing here
        return ""
    closing = turn_end(tokenizer, tools)
    end = tokenizer.id_to_token(closing) if closing is not None else None
    if not found or end is None or end not in rest:
        return ""
    eos = tokenizer.special_tokens.get("eos_token") or end
    behind = rest[max(rest.find(text) + len(text) for text in (end, eos) if text in rest) :]
    return next((behind[i:] for i in range(len(behind)) if opened.endswith(behind[i:])), "").lstrip()
