"""What a record means. A record is one of

    {"messages": [{"role", "content"}, ...], "tools": [...]}  loss on the assistant's turns; tools are optional
    {"prompt": str, "completion": str}                         loss on the completion and the end token
    {"prompt": [message, ...], "completion": [message, ...]}   loss on the assistant's turns of the completion
    {"instruction": str, "input": str, "output": str}          alpaca: a user and an assistant turn; "history" before them
    {"conversations": [{"from", "value"}, ...]}                ShareGPT: the same as messages
    {"text": str}                                              loss on every token

"system" (a text) may stand beside "instruction" and messages. An assistant message with "weight": 0 or "train": false carries
no loss. Which other keys are refused is in `record_keys.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..notices import tell
from ..text.text_ids import prompt_and_completion_ids, whole_text_ids
from . import reported
from .alpaca import alpaca_messages, alpaca_prompts
from .conversation import conversation
from .messages import checked_messages, learned_turns
from .record_keys import KINDS, kind_of_record
from .sharegpt import sharegpt_messages

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

__all__ = ["KINDS", "Sample", "samples_from_record", "texts_of_record"]


@dataclass(frozen=True)
class Sample:
    """One training sequence; `empty` where the record's answers say nothing, so that only their ends would be learned.

    `where` is the place that it was read from, for messages. `label` is what a classifier is to say of the sequence: the
    number of a label, or the values of all of them; the mask is of no use then.

    Shapes
    ------
    input_ids (n,) int32; loss_mask (n,) float32, 1 where the token itself is to be predicted; label () or (num_labels,).
    """

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.float32]
    where: str = ""
    empty: bool = False
    label: Any = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def __repr__(self) -> str:
        place = f", {self.where}" if self.where else ""
        return f"Sample({len(self):,} tokens, {self.n_predicted:,} with loss{place})"

    @property
    def n_predicted(self) -> int:
        """Tokens that carry loss; the first token of a sequence is never predicted, the end of an empty answer not learned.

        With a label it is one: the last.
        """
        if self.label is not None:
            return 1
        return 0 if self.empty else int(np.count_nonzero(self.loss_mask[1:]))


def samples_from_record(
    record: dict[str, Any], tokenizer: Tokenizer, where: str, counts: Counter[str] | None = None
) -> list[Sample]:
    """The sequences of one example (several only when the chat template rewrites earlier turns).

    Parameters
    ----------
    record : dict
        An object of a data file.
    tokenizer : Tokenizer
        The model's.
    where : str
        The place that it was read from.
    counts : Counter, optional
        Takes the lines that are to be told of a data set, each counted once an example; without it, what is left out of this
        example is told at once.

    Raises
    ------
    DataError
        The record is none of the kinds, or its parts do not fit; the message begins with `where`.
    """
    lines: Counter[str] = Counter()
    try:
        samples = _samples(record, tokenizer, lines)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if counts is not None:
        counts.update(lines.keys())
    else:
        for line in lines:
            if line != reported.SEAM:
                tell(line)
    return samples


def texts_of_record(record: dict[str, Any]) -> Iterator[Any]:
    """What of a record becomes tokens as it stands, so that it can be encoded ahead with others."""
    prompt, completion = record.get("prompt"), record.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        yield from (prompt, prompt + completion)
    elif isinstance(text := record.get("text"), str):
        yield text


def _samples(record: dict[str, Any], tokenizer: Tokenizer, lines: Counter[str]) -> list[Sample]:
    kind, aside = kind_of_record(record)
    if aside:
        lines[reported.other_kind(kind, aside)] += 1
    if kind == "messages":
        return _conversation(record["messages"], tokenizer, record, lines)
    if kind == "conversations":
        return _conversation(sharegpt_messages(record["conversations"]), tokenizer, record, lines)
    if kind == "instruction":
        return _alpaca(record, tokenizer, lines)
    if kind == "prompt":
        if isinstance(record["prompt"], list):
            return _prompt_messages(record, tokenizer, lines)
        _need_strings(record, ("prompt", "completion"))
        return _prompts([(record["prompt"], record["completion"])], tokenizer, lines)
    _need_strings(record, ("text",))
    ids = whole_text_ids(tokenizer, record["text"])
    return [_sample(ids, np.ones(len(ids)), empty=not record["text"].strip())]


def _conversation(
    messages: Any, tokenizer: Tokenizer, record: dict[str, Any], lines: Counter[str], n_prompt: int = 0
) -> list[Sample]:
    system, checked = system_of(record), checked_messages(messages)
    if system and checked[0]["role"] == "system":
        raise DataError("expected one system message, got 'system' beside messages that begin with one; keep one of them")
    checked = [{"role": "system", "content": system}, *checked] if system else checked
    learned = learned_turns(checked, n_prompt + bool(system))
    found = conversation(checked, tokenizer, tools_of(record), learned)
    lines.update(map(reported.left_out, found.left_out))
    return [_sample(ids, mask, found.empty) for ids, mask in found.pairs]


def tools_of(record: dict[str, Any]) -> list[Any] | None:
    """The functions that the model may call; some data sets hold the list as JSON text, old ones bare functions."""
    tools = record.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise DataError(f"expected 'tools' to be a list or one in JSON, got text that is none: {error}") from None
    if tools and not isinstance(tools, list):
        raise DataError(f"expected 'tools' to be a list, got a {type(tools).__name__}")
    functions = record.get("functions")
    if functions and tools:
        raise DataError("expected 'tools' or 'functions', got both; keep one of them")
    if functions and not isinstance(functions, list):
        raise DataError(f"expected 'functions' to be a list, got a {type(functions).__name__}")
    return tools or [{"type": "function", "function": function} for function in functions or []] or None


def _prompt_messages(record: dict[str, Any], tokenizer: Tokenizer, lines: Counter[str]) -> list[Sample]:
    prompt, completion = record["prompt"], record.get("completion")
    if not isinstance(completion, list):
        raise DataError(f"expected 'completion' to be a list of messages as 'prompt' is, got {type(completion).__name__}")
    if _role(prompt[-1:]) == _role(completion[:1]) == "assistant":
        raise DataError(
            "expected 'prompt' to end before the answer, got an assistant's message at its end and one at the begin of "
            "'completion'; write the answer as one message, in 'completion'"
        )
    return _conversation(prompt + completion, tokenizer, record, lines, len(prompt))


def _role(messages: list[Any]) -> Any:
    return messages[0].get("role") if messages and isinstance(messages[0], dict) else None


def system_of(record: dict[str, Any]) -> str:
    """The text of "system" beside messages; "" where there is none."""
    system = record.get("system")
    if system is not None and not isinstance(system, str):
        raise DataError(f"expected 'system' to be a string, got {type(system).__name__}")
    return system or ""


def _alpaca(record: dict[str, Any], tokenizer: Tokenizer, lines: Counter[str]) -> list[Sample]:
    _need_strings(record, ("instruction", "output"))
    system_of(record)
    if tokenizer.chat_template is not None:
        return _conversation(alpaca_messages(record), tokenizer, record, lines)
    if tools_of(record):
        raise DataError(
            "expected a model with a chat template for 'tools', got none; remove the key or add chat_template.jinja"
        )
    return _prompts(alpaca_prompts(record, tokenizer), tokenizer, lines)


def _prompts(turns: list[tuple[str, str]], tokenizer: Tokenizer, lines: Counter[str]) -> list[Sample]:
    """Prompts and their completions: one sequence where every prompt goes on from the turn before it, as a rule."""
    samples: list[tuple[list[int], list[float]]] = []
    for prompt, completion in turns:
        ids = prompt_and_completion_ids(tokenizer, prompt, completion)
        if ids.seam:
            lines[reported.SEAM] += 1
        before, mask = samples[-1] if samples and ids.prompt[: len(samples[-1][0])] == samples[-1][0] else ([], [])
        if before:
            samples.pop()
        mask = mask + [0.0] * (len(ids.prompt) - len(before)) + [float(not ids.empty)] * len(ids.completion)
        samples.append((ids.prompt + ids.completion, mask))
    return [_sample(*sample) for sample in samples]


def _sample(ids: Sequence[int], mask: Any, empty: bool = False) -> Sample:
    return Sample(np.asarray(ids, np.int32), np.asarray(mask, np.float32), empty=empty)


def _need_strings(record: dict[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        if not isinstance(record.get(key), str):
            raise DataError(f"expected {key!r} to be a string, got {type(record.get(key)).__name__}")
