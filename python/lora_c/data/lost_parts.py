"""What of a message is in the text that a chat template wrote.

Templates drop parts: reasoning of an answer, content beside tool calls, tool calls, tools, messages of roles unknown to them.
White space is the template's; anything else that is in no sample is told with its count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..text.template_messages import REASONING, text_of
from ..text.template_text import Written
from ..text.tool_calls import texts_of_call
from .messages import Message

THINKING = (
    ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"), ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"), ("<|START_THINKING|>", "<|END_THINKING|>"),
)  # fmt: skip


def reasoning_and_rest(content: str) -> tuple[str, str]:
    """Split a content that holds its reasoning between tags; the reasoning is empty where there are none."""
    for opening, closing in THINKING:
        if closing in content:
            reasoning, _, rest = content.partition(closing)
            return reasoning.strip().removeprefix(opening), rest
    return "", content


def parts_of(message: Message) -> list[tuple[str, list[str]]]:
    """(what it is, its texts) of all that a message says."""
    inner, said = reasoning_and_rest(text_of(message.get("content")))
    reasoning = next((message[key] for key in REASONING if isinstance(message.get(key), str)), "")
    parts = [("reasoning", [reasoning]), ("reasoning", [inner]), ("content", [said])]
    details, refusal = message.get("reasoning_details"), message.get("refusal")
    parts += [("reasoning_details", _texts(details))] if not reasoning else []
    parts += [("refusal", [refusal])] if isinstance(refusal, str) else []
    calls = message.get("tool_calls")
    parts += [("tool calls", list(texts_of_call(call))) for call in calls or [] if isinstance(call, dict)]
    return [(kind, texts) for kind, texts in parts if any(text.strip() for text in texts)]


def _texts(details: Any) -> list[str]:
    """The texts of OpenRouter's list of reasoning."""
    found = [detail.get("text") for detail in details if isinstance(detail, dict)] if isinstance(details, list) else []
    return [text for text in found if isinstance(text, str)]


def lost_parts(message: Message, answer: str) -> tuple[list[str], int]:
    """Kinds of the parts that the text of an answer does not hold, and how many it holds."""
    parts, written = parts_of(message), Written(answer)
    lost = [kind for kind, texts in parts if not all(map(written.holds, texts))]
    return lost, len(parts) - len(lost)


def unwritten_roles(messages: Sequence[Message], text: str) -> set[str]:
    """Roles of messages (not the assistant's) whose content a text does not hold."""
    written = Written(text)
    return {
        m["role"] for m in messages if m["role"] != "assistant" and isinstance(m.get("content"), (str, list))
        and not _is_json_value(m["content"]) and not written.holds(text_of(m["content"]))
    }  # fmt: skip


def writes_tools(tools: Sequence[Any], text: str) -> bool:
    """Whether a text names any of the tools."""
    names = [tool.get("function", tool).get("name") for tool in tools if isinstance(tool, dict) and _is_schema(tool)]
    return not names or any(isinstance(name, str) and name in text for name in names)


def _is_schema(tool: dict[str, Any]) -> bool:
    return isinstance(tool.get("function", tool), dict)


def _is_json_value(content: Any) -> bool:
    return isinstance(content, list) and not all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    )
