"""What a chat template sees of messages.

Messages come as OpenAI's format writes them: arguments of tool calls as JSON text, content as a list of parts. Templates
differ in what they read. Arguments are objects to most and text to some; parts are read by some, others want one text; the
content beside tool calls has to be null, or a text, or may be absent. A template is given what it reads: the plainest form
first, and another one where it fails, drops the calls, or writes Python's or JSON's form of a value in place of the text that
the value holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from typing import Any

from ..errors import DataError
from .template_text import Written
from .tool_calls import arguments_of, call_as_text, parsed_call, texts_of_call

# The names under which reasoning comes, the standard one first.
REASONING = ("reasoning_content", "thinking", "reasoning", "thought")
_RESULTS = ("tool", "function", "ipython", "tool_results")  # roles whose content may be any JSON value


def as_template_reads(messages: Sequence[Any], render: Callable[[list[Any]], str]) -> str:
    """Return what `render` writes of the messages, in the form that its template reads.

    Raises
    ------
    DataError
        The template refuses the messages in every form.
    """
    seen = [_visible(message) for message in messages]
    refused: DataError | None = None
    plain = ""
    try:
        plain = _in_some_form(seen, render)
    except DataError as error:
        refused = error
    if refused is not None or not _writes_calls(seen, plain):
        for other in _with_empty_contents(seen):
            with suppress(DataError):
                if _writes_calls(other, text := _in_some_form(other, render)):
                    return text
    if refused is not None:
        raise refused
    return plain


def _in_some_form(seen: list[Any], render: Callable[[list[Any]], str]) -> str:
    """What the template writes: contents and arguments as they are, and as text where it fails or prints them."""
    refused: DataError | None = None
    partial: str | None = None
    for content, arguments in product(_forms(seen, _has_parts), _forms(seen, _has_arguments)):
        shown = [_in_form(message, content, arguments) for message in seen]
        try:
            text = render(shown)
        except DataError as error:
            refused = refused or error
            continue
        if (wrong := _unread(shown, text)) is None:
            if all(part["text"].strip() in text for message in shown for part in _parts(message)):
                return text
            partial = partial or text  # perhaps the template looks at texts only; perhaps it writes no such message at all
            continue
        refused = refused or DataError(
            f"messages: expected a chat template that writes the text of {wrong}, got one that writes the value as a program "
            "would print it; give the text itself"
        )
    if partial is not None:
        return partial
    assert refused is not None  # there is at least one form
    raise refused


def text_of(content: Any) -> str:
    """The text of a message's content: parts are joined as they stand."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content if isinstance(content, str) else "" if content is None else _json(content)


def _visible(message: Any) -> Any:
    """A message without keys that have no value, arguments as objects, and reasoning under the names that templates read."""
    if not isinstance(message, Mapping):
        return message
    shown = {key: value for key, value in message.items() if value is not None}
    if isinstance(shown.get("content"), list) and shown.get("role") not in _RESULTS:
        shown["content"] = [_text_part(part) for part in shown["content"]] or ""
    if isinstance(shown.get("tool_calls"), list):
        shown["tool_calls"] = [parsed_call(call) for call in shown["tool_calls"]]
    reasoning = next((shown[key] for key in REASONING if key in shown), None)
    return shown if reasoning is None else {"thinking": reasoning} | shown | {"reasoning_content": reasoning}


def _text_part(part: Any) -> Any:
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    got = f"a part of the type {str(kind)[:40]!r}" if isinstance(part, Mapping) else f"{str(part)[:40]!r}"
    raise DataError(
        "messages: expected messages with 'role' and 'content' text, or a list of {'type': 'text', 'text': ...}, got "
        f"{got}; lora-c trains on text alone: leave such messages out"
    )


def _with_empty_contents(messages: list[Any]) -> Iterator[list[Any]]:
    """The messages with the content beside tool calls, where there is none, as empty text and as null."""
    if any(_only_calls(message) for message in messages):
        for content in ("", None):
            yield [message | {"content": content} if _only_calls(message) else message for message in messages]


def _only_calls(message: Any) -> bool:
    return isinstance(message, dict) and bool(message.get("tool_calls")) and not message.get("content")


def _writes_calls(messages: list[Any], text: str) -> bool:
    written = Written(text)
    return all(
        written.holds(part)
        for message in messages if _only_calls(message)
        for call in message["tool_calls"] for part in texts_of_call(call)
    )  # fmt: skip


def _forms(messages: list[Any], has: Callable[[Any], bool]) -> tuple[bool, ...]:
    """Which forms to try: values as they are, and as text."""
    return (False, True) if any(has(message) for message in messages) else (False,)


def _has_parts(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("content"), (list, dict))


def _has_arguments(message: Any) -> bool:
    return any(True for _ in arguments_of(message))


def _in_form(message: Any, content_as_text: bool, arguments_as_text: bool) -> Any:
    if content_as_text and _has_parts(message):
        content = message["content"]
        readable = message.get("role") not in _RESULTS or _is_parts(content)
        message = message | {"content": text_of(content) if readable else _json(content)}
    if arguments_as_text and _has_arguments(message):
        message = message | {"tool_calls": [call_as_text(call) for call in message["tool_calls"]]}
    return message


def _unread(messages: list[Any], text: str) -> str | None:
    """The name of a value that a template wrote as a program prints it, where it should have written what the value holds."""
    for i, message in enumerate(messages):
        printed = [form for part in _parts(message) for form in (str(part), _json(part))]
        printed += [_printed(message["content"])] if _has_parts(message) else []
        if any(form in text for form in printed if form):
            return f"the content of message {i}"
        if any(form in text for form in map(_printed, arguments_of(message)) if form):
            return f"the arguments of message {i}"
    return None


def _printed(value: Any) -> str:
    """Python's form of a value where it is not JSON's."""
    return str(value) if value and str(value) != _json(value) else ""


def _parts(message: Any) -> list[dict[str, str]]:
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, list) and _is_parts(content) else []


def _is_parts(content: Any) -> bool:
    return isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
