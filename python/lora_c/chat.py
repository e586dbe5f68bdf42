"""Conversations to tokens: which of them belong to the assistant is found by rendering, never by searching strings.

For every assistant turn i the template renders messages[:i] with the generation prompt and messages[:i+1]; the second
text must begin with the first, and what it adds is the turn. The end-of-turn marker is part of it and carries loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import DataError

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def alpaca_messages(record: dict[str, Any]) -> list[dict[str, str]]:
    """{"instruction", "input", "output"} as a user and an assistant turn."""
    user = record["instruction"] + (f"\n\n{record['input']}" if record.get("input") else "")
    return [{"role": "user", "content": user}, {"role": "assistant", "content": record["output"]}]


def sharegpt_messages(turns: Any, where: str) -> list[dict[str, str]]:
    """[{"from", "value"}, ...] as messages."""
    if not isinstance(turns, list) or not all(isinstance(t, dict) and "from" in t and "value" in t for t in turns):
        raise DataError(f"{where}: expected 'conversations' to be a list of {{'from', 'value'}}, got {str(turns)[:60]!r}")
    unknown = next((t["from"] for t in turns if t["from"] not in SHAREGPT_ROLES), None)
    if unknown is not None:
        raise DataError(f"{where}: expected 'from' to be one of {sorted(SHAREGPT_ROLES)}, got {unknown!r}")
    return [{"role": SHAREGPT_ROLES[t["from"]], "content": t["value"]} for t in turns]


def assistant_samples(
    messages: Any, tokenizer: Tokenizer, where: str, tools: list[Any] | None = None
) -> list[tuple[list[int], list[float]]]:
    """(token ids, loss mask) of a conversation.

    One pair as a rule. Where the template rewrites earlier turns (some drop the reasoning of past answers), every
    assistant turn becomes a sequence of its own with loss on that turn only, so that each is learned as it will be seen.
    """
    _check_messages(messages, where)
    if tokenizer.chat_template is None:
        raise DataError(
            f"{where}: expected a model with a chat template for 'messages', got none; "
            "use 'prompt'/'completion' data or add chat_template.jinja to the model folder"
        )
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if not turns:
        raise DataError(f"{where}: expected at least one message with the role 'assistant', got none")
    whole = tokenizer.apply_chat_template(messages, tools=tools)
    spans = [_turn_span(messages, i, tokenizer, tools) for i in turns]
    if all(span is not None and whole.startswith(span[2]) for span in spans):
        return [_mask_spans(whole, [(s[0], s[1]) for s in spans if s is not None], tokenizer)]
    samples = []
    for i, span in zip(turns, spans, strict=True):
        if span is None:
            raise DataError(
                f"{where}: expected the chat template to extend its own prompt, but the text of turn {i} does not begin "
                "with the text before it; use 'prompt'/'completion' data for this model"
            )
        samples.append(_mask_spans(span[2], [(span[0], span[1])], tokenizer))
    return samples


def _turn_span(
    messages: list[dict[str, Any]], i: int, tokenizer: Tokenizer, tools: list[Any] | None
) -> tuple[int, int, str] | None:
    """(begin, end, text) of assistant turn i in the text rendered up to it; None where rendering does not nest."""
    text = tokenizer.apply_chat_template(messages[: i + 1], tools=tools)
    for generation_prompt in (True, False):
        before = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=generation_prompt, tools=tools)
        if text.startswith(before) and len(text) > len(before):
            return len(before), len(text), text
    return None


def _mask_spans(text: str, spans: list[tuple[int, int]], tokenizer: Tokenizer) -> tuple[list[int], list[float]]:
    ids, offsets = tokenizer.encode_with_offsets(text, add_special_tokens=False)
    mask = [float(any(b <= begin < e and end > begin for b, e in spans)) for begin, end in offsets]
    return list(ids), mask


def _check_messages(messages: Any, where: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: expected 'messages' to be a list that is not empty, got {str(messages)[:60]!r}")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise DataError(f"{where}: expected message {i} to have 'role' and 'content', got {str(message)[:60]!r}")
