"""Calls of tools in the three forms, whole and in pieces of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from lora_c.serve.tool_calls import ToolCallParser, form_of  # noqa: E402

WEATHER = ("weather", {"at": "sea", "days": 2})
TIME = ("time", {})
CASES: list[tuple[Any, str, str, list[tuple[str, dict[str, Any]]]]] = [
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"at": "sea", "days": 2}}\n</tool_call>', "", [WEATHER]),
    ("hermes", 'Let me see. <tool_call>{"name": "time", "arguments": {}}</tool_call>\n<tool_call>\n{"name": "weather", '
     '"arguments": "{\\"at\\": \\"sea\\", \\"days\\": 2}"}', "Let me see.", [TIME, WEATHER]),
    ("hermes", "a < b and <tool_calls are none", "a < b and <tool_calls are none", []),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"at"', '<tool_call>{"name": "weather", "arguments": {"at"', []),
    ("hermes", "<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
    ("llama3", '{"name": "weather", "parameters": {"at": "sea", "days": 2}}', "", [WEATHER]),
    ("llama3", '<|python_tag|>{"name": "time", "parameters": {}}; {"name": "weather", "parameters": {"at": "sea", "days": 2}}',
     "", [TIME, WEATHER]),
    ("llama3", '{"name": "weather"', '{"name": "weather"', []),
    ("llama3", 'It is {"name": "time"}.', 'It is {"name": "time"}.', []),
    ("llama3", '{"city": "Rome"}', '{"city": "Rome"}', []),
    ("mistral", '[TOOL_CALLS] [{"name": "weather", "arguments": {"at": "sea", "days": 2}}, {"name": "time", "arguments": {}}]',
     "", [WEATHER, TIME]),
    ("mistral", '[TOOL_CALLS]weather[ARGS]{"at": "sea", "days": 2}[TOOL_CALLS]time{}', "", [WEATHER, TIME]),
    ("mistral", "Well [TOOL", "Well [TOOL", []),
    ("mistral", '[TOOL_CALLS][{"name": 5, "arguments": {}}]', '[TOOL_CALLS][{"name": 5, "arguments": {}}]', []),
]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 5, 10_000])
@pytest.mark.parametrize(("form", "text", "content", "calls"), CASES)
def test_content_and_calls(form: Any, text: str, content: str, calls: list[Any], size: int) -> None:
    parser = ToolCallParser(form)
    given = "".join(parser.push(text[at : at + size]) for at in range(0, len(text), size))
    rest, found = parser.finish()
    assert given + rest == content
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls
    assert content.startswith(given)
    assert all(call.id.startswith("call_") if form != "mistral" else len(call.id) == 9 for call in found)
    assert len({call.id for call in found}) == len(found)


def test_content_before_a_call_is_given_at_once() -> None:
    parser = ToolCallParser("hermes")
    assert parser.push("Hello there") == "Hello there" and parser.push(" <to") == ""
    assert parser.push("day") == " <today"


TEMPLATES = {
    "Qwen-Qwen2.5-7B-Instruct": "hermes", "meta-llama-Llama-3.2-3B-Instruct": "llama3",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral", "google-gemma-2-2b-it": None, "microsoft-Phi-3.5-mini-instruct": None,
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_form_is_that_of_the_template(shared_data: Any, name: str) -> None:
    folder: Path = shared_data("chat_templates")
    assert form_of((folder / f"{name}.jinja").read_text(encoding="utf-8")) == TEMPLATES[name]


def test_a_template_without_tools_has_no_form() -> None:
    assert form_of(None) is None and form_of("{{ messages }} <tool_call>") is None
