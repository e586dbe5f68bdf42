"""Names that data sets use for prompts and completions: a record that has them is refused with the flag that reads it.

Nothing is guessed while reading: which column is learned is what the user says.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

_QUESTIONS = (
    "question", "query", "prompt", "instruction", "input", "source", "problem", "user", "human", "request", "utterance", "src",
    "q",
)  # fmt: skip
_ANSWERS = (
    "answer", "response", "completion", "output", "target", "solution", "assistant", "bot", "gpt", "reply", "tgt", "a",
)  # fmt: skip
_CONTEXTS = ("context", "passage", "input")
_TEXTS = ("content", "body", "document", "article", "passage", "story", "sentence", "code", "raw_text", "string")


def way_out_of(record: Mapping[str, Any]) -> str:
    """The end of a message that names the flag which reads such a record; "" where none of the names is known."""
    columns = known_columns(record)
    if not columns:
        return _of_one_column(record)
    return _flag(columns)


def known_columns(record: Mapping[str, Any]) -> dict[str, str]:
    """The columns of a record whose names tell what they are, by the names that lora-c has for it."""
    turns = next((found for key, value in record.items() if (found := _turns(key, value))), None)
    if turns is not None:
        return turns
    names = {str(key).strip().lower(): str(key) for key in record}
    answer = next((names[name] for name in _ANSWERS if name in names), None)
    question = next((names[name] for name in _QUESTIONS if name in names), None)
    if answer is not None and question is not None:
        context = next((names[name] for name in _CONTEXTS if name in names and names[name] not in (question, answer)), None)
        if question == "instruction" or context is not None:
            wanted = {"instruction": question, "input": context, "output": answer}
        else:
            wanted = {"prompt": question, "completion": answer}
        return {target: source for target, source in wanted.items() if source is not None}
    text = next((names[name] for name in _TEXTS if name in names), None)
    return {"text": text} if text is not None else {}


_LABELS = (
    "label", "labels", "class", "category", "target", "sentiment", "intent", "score", "rating", "stars", "topic", "gold", "y",
)  # fmt: skip
_FIRST = (
    "text",
    "sentence",
    "sentence1",
    "premise",
    "question1",
    "text_a",
    "question",
    *_QUESTIONS,
    *_TEXTS,
    "review",
    "tweet",
)
_SECOND = ("text_pair", "sentence2", "hypothesis", "question2", "text_b", "text2")


def way_out_of_labelled(record: Mapping[str, Any]) -> str:
    """The same for a text with a label, of a classifier's data."""
    names = {str(key).strip().lower(): str(key) for key in record}
    found = [next((names[name] for name in known if name in names), None) for known in (_FIRST, _SECOND, _LABELS)]
    columns = {
        target: source for target, source in zip(("text", "text_pair", "label"), found, strict=True) if source is not None
    }
    if not {"text", "label"} <= columns.keys() or all(target == source for target, source in columns.items()):
        return ""
    return _flag(columns)


def _flag(columns: dict[str, str]) -> str:
    flag = shlex.quote(",".join(f"{target}={source}" for target, source in columns.items()))
    return f"; give --columns {flag} (in Python: columns={columns})"


def _turns(key: Any, value: Any) -> dict[str, str] | None:
    """A list of messages under a name of its own."""
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        for target, has in (("messages", {"role"}), ("conversations", {"from", "value"})):
            if all(has <= turn.keys() for turn in value):
                return {target: str(key)}
    return None


def _of_one_column(record: Mapping[str, Any]) -> str:
    """A table whose columns are separated by something else has one column, whose name holds all names."""
    name = str(next(iter(record))) if len(record) == 1 else ""
    found = next((sign for sign in (";", "\t", "|") if sign in name), None)
    if found is None:
        return ""
    return f"; its columns are separated by {found!r}: write commas between them (or tabs, in a file that ends in .tsv)"
