"""Messages as data sets write them: checks, older forms of tool calls, and which turns are to be learned."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

Message = dict[str, Any]
FLAGS = ("weight", "train", "training", "trainable", "loss")  # OpenAI's, axolotl's and ms-swift's: 0 carries no loss
_OF_PARTS = ("train_detail", "training_detail")
_NO_TEXT = (
    "image", "images", "audio", "audios", "video", "videos", "documents", "files", "attachments", "experimental_attachments",
)  # fmt: skip


def checked_messages(messages: Any) -> list[Message]:
    """Return messages in today's form.

    Raises
    ------
    DataError
        One has no role, or says nothing.
    """
    if not isinstance(messages, list) or not messages:
        raise DataError(f"expected 'messages' to be a list that is not empty, got {str(messages)[:60]!r}")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(f"expected message {i} to have 'role' and 'content', got {str(message)[:60]!r}")
        if all(message.get(key) is None for key in ("content", "function_call")) and not message.get("tool_calls"):
            raise DataError(f"expected message {i} to have 'content' or 'tool_calls', got {str(message)[:60]!r}")
        other = next((key for key in _NO_TEXT if message.get(key)), None)
        if other is not None:
            raise DataError(
                f"expected message {i} without {other!r}, got one with it; lora-c trains on text alone: leave such messages "
                "out"
            )
    legacy = any(message.get("function_call") is not None for message in messages)
    return [_with_tool_calls(message) for message in messages] if legacy else list(messages)


def learned_turns(messages: list[Message], n_prompt: int = 0) -> list[int]:
    """Return the indices of the assistant's turns that carry loss; the first `n_prompt` messages have none.

    Raises
    ------
    DataError
        A flag is no yes or no, or asks for loss on another's turn; or no turn is left.
    """
    flags = [_flag(message, i) for i, message in enumerate(messages)]
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= n_prompt and flags[i] is not False]
    if not turns:
        raise DataError("expected at least one message with the role 'assistant' to learn from, got none")
    return turns


def without_doubled_ends(messages: list[Message], tokenizer: Tokenizer, tools: list[Any] | None) -> list[Message]:
    """Messages without a begin or an end token in their text that the chat template writes there, too."""
    bos, eos = (tokenizer.special_tokens.get(key) or "" for key in ("bos_token", "eos_token"))
    plain = [_stripped(message, bos if i == 0 else "", eos) for i, message in enumerate(messages)]
    if plain == messages:
        return messages
    text = tokenizer.apply_chat_template(messages, tools=tools)
    twice = [rf"\A(?:{re.escape(bos)}){{2}}"] if bos else []
    twice += [rf"{re.escape(eos)}\s*{re.escape(eos)}"] if eos else []
    return plain if any(re.search(pattern, text) for pattern in twice) else messages


def _stripped(message: Message, bos: str, eos: str) -> Message:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    stripped = content.removeprefix(bos)
    if eos and message["role"] == "assistant" and stripped.rstrip().endswith(eos):
        stripped = re.sub(rf"(?:{re.escape(eos)}\s*)+\Z", "", stripped)
    return message if stripped == content else message | {"content": stripped}


def _flag(message: Message, i: int) -> bool | None:
    """Whether a message says that it is to be learned; None where it says nothing."""
    said = {key: message[key] for key in FLAGS if message.get(key) is not None}
    for key, value in said.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise DataError(f"expected {key!r} of message {i} to be 0 or 1, got {str(value)[:40]!r}; a turn is learned or not")
        if value and key != "weight" and message["role"] != "assistant":
            got = f"1 at the role {message['role'][:40]!r}"
            raise DataError(f"expected {key!r} of message {i} to be 0, got {got}; only the assistant's turns are learned")
    detail = next((key for key in _OF_PARTS if message.get(key)), None)
    if detail is not None:
        raise DataError(f"expected message {i} without {detail!r}, got one with it; mark whole messages by 'train': false")
    if len(set(map(bool, said.values()))) > 1:
        raise DataError(f"expected the flags of message {i} to agree, got {said}; keep one of them")
    return bool(next(iter(said.values()))) if said else None


def _with_tool_calls(message: Message) -> Message:
    """OpenAI's form before 'tool_calls' was "function_call", answered by the role "function"."""
    call = message.get("function_call")
    if message["role"] == "function":
        return message | {"role": "tool"}
    if call is None or message.get("tool_calls"):
        return message
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise DataError(f"expected 'function_call' to hold 'name' and 'arguments', got {str(call)[:60]!r}")
    kept = {key: value for key, value in message.items() if key != "function_call"}
    return kept | {"tool_calls": [{"type": "function", "function": call}]}
