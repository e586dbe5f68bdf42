"""The text of a conversation whose last message is a beginning: it stays open, and the model goes on with it.

As in transformers: the last message is rendered with a mark at its end, and the text is cut there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import DataError

_MARK = "CONTINUE_FINAL_MESSAGE_TAG "  # its last character shows whether the template trims messages


def render_open(render: Callable[[Sequence[dict[str, Any]]], str], messages: Sequence[dict[str, Any]]) -> str:
    """Return the text up to the end of the last message's content.

    Parameters
    ----------
    render : callable
        Makes the text of messages with the model's template, without a generation prompt.

    Raises
    ------
    DataError
        The last message has no text, or the template leaves it out.
    """
    last = messages[-1] if messages else None
    content = last.get("content") if isinstance(last, dict) else None
    text, marked = _with_mark(content)
    if last is None or text is None:
        raise DataError(
            f"messages: expected text in the last message, which is to be continued, got {str(content)[:40]!r}; end with a "
            "user's message to get an answer"
        )
    whole = render([*messages[:-1], {**last, "content": marked}])
    at = whole.rfind(_MARK.strip())
    if at < 0 or text.strip() not in whole:
        raise DataError(
            "messages: expected a chat template that writes the last message, which is to be continued, got one that "
            "leaves it out or changes it; end with a user's message to get an answer"
        )
    return whole[:at] if whole.startswith(_MARK, at) else whole[:at].rstrip()


def _with_mark(content: Any) -> tuple[str | None, Any]:
    """The text at the end of a content, and the content with the mark behind it."""
    if isinstance(content, str):
        return content, content + _MARK
    if isinstance(content, (list, tuple)):
        for i in reversed(range(len(content))):
            part = content[i]
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                return part["text"], [*content[:i], {**part, "text": part["text"] + _MARK}, *content[i + 1 :]]
    return None, None
