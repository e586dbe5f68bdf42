"""Tool calls of messages: their arguments as objects or as JSON text, and the texts that they hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import DataError


def parsed_call(call: Any) -> Any:
    """A tool call whose arguments are an object; OpenAI writes them as JSON text."""
    if not isinstance(call, Mapping):
        raise DataError(f"messages: expected 'tool_calls' to hold objects, got {str(call)[:60]!r}")
    function = call.get("function")
    if isinstance(function, Mapping):
        return dict(call) | {"function": parsed_call(function)}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return dict(call)
    try:
        parsed = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise DataError(
            f"messages: expected 'arguments' of a tool call to be an object or JSON text of one, got {arguments[:60]!r}"
        )
    return dict(call) | {"arguments": parsed}


def arguments_of(message: Any) -> Iterator[Any]:
    """The arguments of a message's calls, where they are objects."""
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function", call)
        if isinstance(function, Mapping) and isinstance(function.get("arguments"), Mapping):
            yield function["arguments"]


def call_as_text(call: dict[str, Any]) -> dict[str, Any]:
    """A call whose arguments are JSON text."""
    if isinstance(call.get("function"), Mapping):
        return call | {"function": call_as_text(call["function"])}
    arguments = call.get("arguments")
    return call | {"arguments": json.dumps(arguments, ensure_ascii=False)} if isinstance(arguments, Mapping) else call


def texts_of_call(call: Mapping[str, Any]) -> Iterator[str]:
    """The name and the values of a call, whatever form a template gives them."""
    value = call.get("function", call)
    if isinstance(value, dict):
        for key in ("name", "arguments", "parameters"):
            if key in value:
                yield from _leaves(value[key], parse=key != "name")


def _leaves(value: Any, parse: bool) -> Iterator[str]:
    if isinstance(value, str) and parse:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            pass
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item, False)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield json.dumps(value)
