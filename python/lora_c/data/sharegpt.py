"""ShareGPT's conversations as messages: [{"from", "value"}, ...]."""

from __future__ import annotations

import json
from typing import Any

from ..errors import DataError
from .messages import FLAGS, Message

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "model": "assistant", "bot": "assistant", "system": "system", "tool": "tool", "observation": "tool",
    "function_response": "tool",
}  # fmt: skip
_KEPT = (
    *FLAGS,
    "train_detail",
    "training_detail",
    "tool_calls",
    "tool_call_id",
    "name",
    "reasoning_content",
    "reasoning",
    "thinking",
)


def sharegpt_messages(turns: Any) -> list[Message]:
    """Return the turns as messages; a function call becomes a tool call of the assistant, and flags of loss stay."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"expected 'conversations' to be a list of {{'from', 'value'}}, got {str(turns)[:60]!r}")
    if turns and all("role" in turn and "from" not in turn for turn in turns):
        return list(turns)  # messages under another name
    return [_message(turn) for turn in turns]


def _message(turn: dict[str, Any]) -> Message:
    if "from" not in turn or "value" not in turn:
        raise DataError(f"expected 'conversations' to be a list of {{'from', 'value'}}, got {str(turn)[:60]!r}")
    role, kept = turn["from"], {key: turn[key] for key in _KEPT if key in turn}
    if role == "function_call":
        return {"role": "assistant", "tool_calls": _function_calls(turn["value"])} | kept
    if isinstance(role, str) and role in ROLES:
        return {"role": ROLES[role], "content": turn["value"]} | kept
    raise DataError(f"expected 'from' to be one of {', '.join(sorted([*ROLES, 'function_call']))}, got {str(role)[:60]!r}")


def _function_calls(value: Any) -> list[dict[str, Any]]:
    """One call or several, as JSON text."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        calls = None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise DataError(f"expected a 'function_call' to hold JSON with 'name' and 'arguments', got {str(value)[:60]!r}")
    return [{"type": "function", "function": call} for call in calls]
