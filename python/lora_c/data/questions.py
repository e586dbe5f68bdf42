"""What a record asks, for tasks: a prompt and the answers that are right, or the choices that it leaves.

    {"prompt": str, "completion": str}            as in training; so are alpaca's records and conversations
    {"messages": [..., {"role": "assistant"}]}    the last answer is right, what stands before it the prompt
    {"prompt": …, "references": [str, ...]}       several right answers; SQuAD's {"text": [str, ...]} is such a list

    {"prompt": …, "choices": [str, ...], "answer": …}   a choice goes on after the prompt as it stands
    {"question": str, "choices": …, "answer": …}        as MMLU, ARC and OpenBookQA have it
    {"ctx": str, "endings": [str, ...], "label": …}     as HellaSwag has it

The answer among choices is their number from 0, a letter from A, a label of theirs, or the text of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..text.template_messages import text_of
from .alpaca import alpaca_messages, alpaca_prompts
from .messages import Message, checked_messages
from .record_keys import keys_of, kind_of_record
from .samples import system_of, tools_of
from .sharegpt import sharegpt_messages

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

_ASKED = ("prompt", "question", "question_stem", "ctx")
_CHOICES = ("choices", "endings", "options")
_ANSWERS = ("answer", "answerKey", "label", "answer_idx", "gold")
Prompt = str | list[Message]


@dataclass(frozen=True)
class Question:
    """A prompt, and what is right: one of the references, or of the choices that with the number `right`.

    `where` is the place that it was read from; `tools` the functions that its messages may call. `between` stands between a
    prompt that is a text and a choice; `chat_prompt` is what a user would ask, where `prompt` has words around it.
    """

    where: str
    prompt: Prompt
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    right: int = 0
    between: str = ""
    chat_prompt: str = ""
    tools: tuple[Any, ...] = ()


def written_question(record: Mapping[str, Any], tokenizer: Tokenizer, where: str) -> Question:
    """The question of a record whose answer is to be written.

    Raises
    ------
    DataError
        It has no prompt or no right answer; the message begins with `where`.
    """
    try:
        return _written(dict(record), tokenizer, where)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def choice_question(record: Mapping[str, Any], where: str) -> Question:
    """The question of a record with choices.

    Raises
    ------
    DataError
        It has none, or its answer is none of them; the message begins with `where`.
    """
    try:
        return _with_choices(dict(record), where)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _written(record: dict[str, Any], tokenizer: Tokenizer, where: str) -> Question:
    several = _references(record.pop("references")) if record.get("references") is not None else ()
    if several and isinstance(record.get("prompt"), (str, list)):
        whole = [{"role": "assistant", "content": several[0]}] if isinstance(record["prompt"], list) else several[0]
        record.setdefault("completion", whole)
    kind, _ = kind_of_record(record)
    if kind == "text":
        raise DataError("expected a prompt and its answer, got a record of 'text' alone; perplexity is the task for texts")
    if kind == "instruction" and tokenizer.chat_template is None:
        prompt, reference = alpaca_prompts(record, tokenizer)[-1]
        return Question(where, prompt, several or (reference,))
    if kind == "prompt" and isinstance(record["prompt"], str):
        if not isinstance(record["completion"], str):
            raise DataError(f"expected 'completion' to be a string, got {type(record['completion']).__name__}")
        return Question(where, record["prompt"], several or (record["completion"],))
    messages = _messages(kind, record)
    reference = text_of(messages[-1].get("content"))
    if messages[-1]["role"] != "assistant" or not reference:
        raise DataError("expected the last message to be the assistant's, with the text that is right, got another one")
    return Question(where, messages[:-1], several or (reference,), tools=tuple(tools_of(record) or ()))


def _messages(kind: str, record: dict[str, Any]) -> list[Message]:
    if kind == "instruction":
        found = alpaca_messages(record)
    elif kind == "conversations":
        found = sharegpt_messages(record["conversations"])
    else:
        found = record["messages"] if kind == "messages" else [*record["prompt"], *record["completion"]]
    messages, system = checked_messages(found), system_of(record)
    if system and messages[0]["role"] == "system":
        raise DataError("expected one system message, got 'system' beside messages that begin with one; keep one of them")
    messages = [{"role": "system", "content": system}, *messages] if system else messages
    if len(messages) < 2:
        raise DataError("expected a message before the assistant's, got none; there is nothing to answer")
    return messages


def _references(given: Any) -> tuple[str, ...]:
    found = given.get("text") if isinstance(given, Mapping) else given
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        raise DataError(f"expected 'references' to be a list of one text or more, got {str(given)[:60]!r}")
    return tuple(found)


def _with_choices(record: dict[str, Any], where: str) -> Question:
    asked, among, said = (next((k for k in keys if k in record), None) for keys in (_ASKED, _CHOICES, _ANSWERS))
    if asked is None or among is None or said is None:
        raise DataError(
            f"expected 'prompt' or 'question', 'choices' and 'answer', got the keys {keys_of(record)}; give --columns "
            "question=COLUMN,choices=COLUMN,answer=COLUMN, or --task exact-match for answers that are written"
        )
    prompt = record[asked]
    if isinstance(prompt, list) and asked == "prompt":
        prompt = checked_messages(prompt)
    elif not isinstance(prompt, str) or not prompt:
        raise DataError(f"expected {asked!r} to be a text, got {str(prompt)[:60]!r}")
    choices, labels = _choices(record[among], among)
    right = _right(record[said], choices, labels, said)
    if asked == "prompt" or isinstance(prompt, list):
        tools = tuple(tools_of(record) or ())
        return Question(where, prompt, choices=choices, right=right, chat_prompt=prompt if not tools else "", tools=tools)
    text = prompt.rstrip() if asked == "ctx" else f"Question: {prompt.strip()}\nAnswer:"
    return Question(where, text, choices=choices, right=right, between=" ", chat_prompt=prompt.strip())


def _choices(given: Any, key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts of the choices, and their labels where they have some."""
    texts: Any = given
    labels: Any = []
    if isinstance(given, Mapping):
        texts, labels = given.get("text"), given.get("label") or []
    elif isinstance(given, list) and given and all(isinstance(item, Mapping) for item in given):
        texts, labels = [item.get("text") for item in given], [item.get("label") for item in given if "label" in item]
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) and text for text in texts):
        raise DataError(f"expected {key!r} to be a list of two texts or more, got {str(given)[:60]!r}")
    if labels and (not isinstance(labels, list) or len(labels) != len(texts) or len(set(map(str, labels))) != len(texts)):
        raise DataError(f"expected a label of its own for each of {len(texts)} {key!r}, got {str(labels)[:60]!r}")
    if len(set(texts)) < len(texts):
        raise DataError(f"expected {key!r} that differ, got {next(t for t in texts if texts.count(t) > 1)[:60]!r} twice")
    return tuple(texts), tuple(map(str, labels))


def _right(given: Any, choices: tuple[str, ...], labels: tuple[str, ...], key: str) -> int:
    """The number of the right choice."""
    n = len(choices)
    if isinstance(given, int) and not isinstance(given, bool) and not labels:
        readings = {given} & set(range(n))
    else:
        text = str(given).strip()
        readings = {i for i, choice in enumerate(choices) if choice in (given, text)}
        if labels:
            readings |= {i for i, label in enumerate(labels) if label == text}
        else:
            readings |= {i for i in range(n) if text in (chr(ord("A") + i), str(i))}
    if len(readings) != 1:
        last = chr(ord("A") + n - 1)
        wanted = (
            f"one of the labels {', '.join(labels)}" if labels else f"a number from 0 to {n - 1}, a letter from A to {last}"
        )
        got = f"{str(given)[:60]!r}" + (", which means several of them" if readings else "")
        raise DataError(f"expected {key!r} to be {wanted} or the text of a choice, got {got}")
    return readings.pop()
