"""Alpaca's records: {"instruction", "input", "output"}, with "system", "history" and "tools" where there are some.

`history` is a list of [question, answer]: turns before the instruction, whose answers are learned, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .messages import Message

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer


def alpaca_messages(record: dict[str, Any]) -> list[Message]:
    """Return a record as messages, the system message aside."""
    messages = []
    for question, answer in alpaca_turns(record):
        user = question["instruction"] + (f"\n\n{question['input']}" if question["input"] else "")
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return messages


def alpaca_prompts(record: dict[str, Any], tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return (prompt, completion) of every turn, in alpaca's own form, for models without a chat template."""
    eos = tokenizer.special_tokens.get("eos_token") or ""
    text = f"{record['system']}\n\n" if record.get("system") else ""
    pairs = []
    for question, answer in alpaca_turns(record):
        text += f"### Instruction:\n{question['instruction']}"
        text += f"\n\n### Input:\n{question['input']}" if question["input"] else ""
        text += "\n\n### Response:\n"
        pairs.append((text, answer))
        text += f"{answer.removesuffix(eos)}{eos}\n\n"
    return pairs


def alpaca_turns(record: dict[str, Any]) -> list[tuple[dict[str, str], str]]:
    """Return (question, answer) of the history and of the record itself."""
    history, extra = record.get("history") or [], record.get("input") or ""
    if not isinstance(extra, str):
        raise DataError(f"expected 'input' to be a string, got {type(extra).__name__}")
    pairs = history if isinstance(history, list) else [history]
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(t, str) for t in pair) for pair in pairs):
        raise DataError(f"expected 'history' to be a list of [question, answer], got {str(history)[:60]!r}")
    earlier = [({"instruction": question, "input": ""}, answer) for question, answer in pairs]
    return [*earlier, ({"instruction": record["instruction"], "input": extra}, record["output"])]
