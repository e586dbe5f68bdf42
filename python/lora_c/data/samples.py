"""What a record means. A record is one of

    {"messages": [{"role", "content"}, ...], "tools": [...]}  loss on the assistant's turns; tools are optional
    {"prompt": str, "completion": str}                         loss on the completion and the end token
    {"prompt": [message, ...], "completion": [message, ...]}   loss on the assistant's turns of the completion
    {"instruction": str, "input": str, "output": str}          alpaca: a user and an assistant turn
    {"conversations": [{"from", "value"}, ...]}                ShareGPT: the same as messages
    {"text": str}                                              loss on every token

"system" (a text) may stand beside "instruction" and "conversations". An assistant message with "weight": 0 carries no loss.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .conversation import assistant_samples

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

KINDS = ("messages", "conversations", "prompt", "instruction", "text")
SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "model": "assistant", "system": "system", "tool": "tool", "observation": "tool",
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One training sequence.

    Shapes
        input_ids (n,) int32; loss_mask (n,) float32, 1 where the token itself is to be predicted.

    `where` is the place that it was read from, for messages.
    """

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.float32]
    where: str = ""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def n_predicted(self) -> int:
        """Tokens that carry loss; the first token of a sequence is never predicted."""
        return int(np.count_nonzero(self.loss_mask[1:]))


def samples_from_record(record: dict[str, Any], tokenizer: Tokenizer, where: str) -> list[Sample]:
    """The sequences of one example (several only when the chat template rewrites earlier turns).

    Raises
    ------
    DataError
        The record is none of the kinds, or its parts do not fit; the message begins with `where`.
    """
    try:
        return _samples(record, tokenizer)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _samples(record: dict[str, Any], tokenizer: Tokenizer) -> list[Sample]:
    kind = next((k for k in KINDS if k in record), None)
    if kind is None:
        raise DataError(
            "expected 'messages', 'prompt'/'completion', 'instruction'/'output', 'conversations' or 'text', "
            f"got the keys {sorted(map(str, record))[:8]}"
        )
    if kind == "messages":
        return _conversation(record["messages"], tokenizer, record)
    if kind == "conversations":
        return _conversation(_with_system(record, sharegpt_messages(record["conversations"])), tokenizer, record)
    if kind == "instruction":
        return _alpaca(record, tokenizer)
    if kind == "prompt":
        if isinstance(record["prompt"], list):
            return _prompt_messages(record, tokenizer)
        _need_strings(record, ("prompt", "completion"))
        return [_prompt_sample(record["prompt"], record["completion"], tokenizer)]
    _need_strings(record, ("text",))
    ids = tokenizer.encode(record["text"], add_special_tokens=True)
    if tokenizer.eos_token_id is not None:
        ids = [*ids, tokenizer.eos_token_id]
    return [_sample(ids, np.ones(len(ids), np.float32))]


def _conversation(messages: Any, tokenizer: Tokenizer, record: dict[str, Any], n_prompt: int = 0) -> list[Sample]:
    pairs = assistant_samples(messages, tokenizer, _tools(record), n_prompt)
    return [_sample(ids, mask) for ids, mask in pairs]


def _tools(record: dict[str, Any]) -> list[Any] | None:
    """The functions that the model may call; some data sets hold the list as JSON text."""
    tools = record.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise DataError(f"expected 'tools' to be a list or one in JSON, got text that is none: {error}") from None
    if tools and not isinstance(tools, list):
        raise DataError(f"expected 'tools' to be a list, got a {type(tools).__name__}")
    return tools or None


def _prompt_messages(record: dict[str, Any], tokenizer: Tokenizer) -> list[Sample]:
    prompt, completion = record["prompt"], record.get("completion")
    if not isinstance(completion, list):
        raise DataError(f"expected 'completion' to be a list of messages as 'prompt' is, got {type(completion).__name__}")
    return _conversation(prompt + completion, tokenizer, record, len(prompt))


def _with_system(record: dict[str, Any], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    system = record.get("system")
    if system is not None and not isinstance(system, str):
        raise DataError(f"expected 'system' to be a string, got {type(system).__name__}")
    return [{"role": "system", "content": system}, *messages] if system else messages


def _alpaca(record: dict[str, Any], tokenizer: Tokenizer) -> list[Sample]:
    _need_strings(record, ("instruction", "output"))
    extra = record.get("input") or ""
    if not isinstance(extra, str):
        raise DataError(f"expected 'input' to be a string, got {type(extra).__name__}")
    if tokenizer.chat_template is not None:
        user = record["instruction"] + (f"\n\n{extra}" if extra else "")
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": record["output"]}]
        return _conversation(_with_system(record, turns), tokenizer, {})
    system = "".join(m["content"] + "\n\n" for m in _with_system(record, []))
    prompt = f"{system}### Instruction:\n{record['instruction']}" + (f"\n\n### Input:\n{extra}" if extra else "")
    return [_prompt_sample(prompt + "\n\n### Response:\n", record["output"], tokenizer)]


def sharegpt_messages(turns: Any) -> list[dict[str, Any]]:
    """[{"from", "value"}, ...] as messages; a function call becomes a tool call of the assistant."""
    if not isinstance(turns, list) or not all(isinstance(t, dict) and "from" in t and "value" in t for t in turns):
        raise DataError(f"expected 'conversations' to be a list of {{'from', 'value'}}, got {str(turns)[:60]!r}")
    messages: list[dict[str, Any]] = []
    for turn in turns:
        role = turn["from"]
        if role == "function_call":
            messages.append({"role": "assistant", "tool_calls": [_function_call(turn["value"])]})
        elif isinstance(role, str) and role in SHAREGPT_ROLES:
            messages.append({"role": SHAREGPT_ROLES[role], "content": turn["value"]})
        else:
            known = sorted([*SHAREGPT_ROLES, "function_call"])
            raise DataError(f"expected 'from' to be one of {', '.join(known)}, got {str(role)[:60]!r}")
    return messages


def _function_call(value: Any) -> dict[str, Any]:
    try:
        call = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        call = None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise DataError(f"expected a 'function_call' to hold JSON with 'name' and 'arguments', got {str(value)[:60]!r}")
    return {"type": "function", "function": call}


def _prompt_sample(prompt: str, completion: str, tokenizer: Tokenizer) -> Sample:
    """Prompt and completion are tokenized as one text, so a word that spans the seam gets the tokens it has in prose."""
    ids, offsets = tokenizer.encode_with_offsets(prompt + completion, add_special_tokens=True)
    mask = [float(end > len(prompt) and end > begin) for begin, end in offsets]
    if tokenizer.eos_token_id is not None:
        ids, mask = [*ids, tokenizer.eos_token_id], [*mask, 1.0]
    return _sample(ids, mask)


def _sample(ids: Sequence[int], mask: Any) -> Sample:
    return Sample(np.asarray(ids, np.int32), np.asarray(mask, np.float32))


def _need_strings(record: dict[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        if not isinstance(record.get(key), str):
            raise DataError(f"expected {key!r} to be a string, got {type(record.get(key)).__name__}")
