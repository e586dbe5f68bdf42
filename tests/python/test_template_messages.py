"""Messages as OpenAI's format writes them, for templates that read objects or text, parts or one text."""

from __future__ import annotations

from typing import Any

import pytest

from lora_c.errors import DataError
from lora_c.text import chat_template

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
OBJECTS = "{% for c in messages[0].tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
TEXT = "{% for c in messages[0].tool_calls %}{{ '!' + c.function.arguments }}{% endfor %}"
PRINTED = TEXT.replace("'!' +", "'!' ~")
STRING_OR_PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'text' %}{{ '[' + p.text + ']' }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


def render(source: str, messages: list[dict[str, Any]]) -> str:
    return chat_template.render(source, messages, False, None, NAMES)


def called(arguments: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": arguments}}]}]


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize("arguments", ['{"city": "Zürich"}', {"city": "Zürich"}])
def test_arguments_are_an_object_or_text_as_the_template_reads_them(arguments: Any) -> None:
    assert render(OBJECTS, called(arguments)) == '{"city": "Zürich"}'
    for source in (TEXT, PRINTED):
        assert render(source, called(arguments)) == '!{"city": "Zürich"}'


@pytest.mark.parametrize(("arguments", "text"), [("", "{}"), ("{}", "{}"), (" ", "{}"), (None, '"')])
def test_no_arguments(arguments: Any, text: str) -> None:
    if arguments is None:
        with pytest.raises(DataError, match="messages: expected"):
            render(TEXT, called(arguments))
    else:
        assert render(OBJECTS, called(arguments)) == text


@pytest.mark.parametrize("arguments", ["city=Paris", "[1]", '"x"', "3", '{"a": 1', "[" * 100_000])
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    with pytest.raises(
        DataError, match="messages: expected 'arguments' of a tool call to be an object or JSON text of one"
    ) as error:
        render(OBJECTS, called(arguments))
    assert "\n" not in str(error.value)


OF_CALLS = "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}"
NEEDS_TEXT = "{% for m in messages %}{{ m.content.split('|')[0] }}" + OF_CALLS + "{% endfor %}"
NEEDS_NULL = (
    "{% for m in messages %}{% if m.content is none %}" + OF_CALLS + "{% else %}{{ '!' + m.content }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
@pytest.mark.parametrize("source", [NEEDS_TEXT, NEEDS_NULL])
def test_nothing_beside_tool_calls_is_absent_null_or_empty_as_the_template_reads_it(source: str, content: Any) -> None:
    assert render(source, [called({"x": "ü"})[0] | content]) == '<call>f {"x": "ü"}'


def test_a_template_that_writes_no_calls_refuses_a_message_without_content_as_in_transformers() -> None:
    with pytest.raises(DataError, match="messages: expected what the chat template accepts"):
        render("{% for m in messages %}{{ '!' + m.content }}{% endfor %}", called({"x": "y"}))


def test_parts_are_kept_for_templates_that_read_them_and_joined_for_others() -> None:
    messages = [{"role": "user", "content": parts("a", "b")}, {"role": "assistant", "content": "c"}]
    assert render(STRING_OR_PARTS, messages) == "<user>[a][b]<assistant>c"
    for source in (
        "{% for m in messages %}{{ m.content + '|' }}{% endfor %}",  # a list cannot be added to a text
        "{% for m in messages %}{{ m.content }}{{ '|' }}{% endfor %}",  # Python's form of a list
        "{% for m in messages %}{{ m.content | tojson }}{{ '|' }}{% endfor %}",  # JSON's form of a list
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% endif %}{{ '|' }}{% endfor %}",  # no list at all
    ):
        assert render(source, messages).replace('"', "") == "ab|c|", source
    assert render("{% for m in messages %}{{ m.content + '|' }}{% endfor %}", [{"role": "user", "content": []}]) == "|"


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "image"}, {"type": "input_audio"},
                                  {"type": "video", "video": "x"}, {"type": "file"}, "text", 3, {"type": "text"}])  # fmt: skip
def test_other_parts_than_text_are_refused(part: Any) -> None:
    with pytest.raises(DataError, match="messages: expected messages with 'role' and 'content' text, or a list of .* got"):
        render(STRING_OR_PARTS, [{"role": "user", "content": [*parts("a"), part]}])


def test_results_of_tools_may_be_any_value() -> None:
    for source in ("{{ messages[0].content }}", "{{ messages[0].content | tojson }}", "{{ 'x' + messages[0].content }}"):
        assert render(source, [{"role": "tool", "content": {"degrees": 21}}]).removeprefix("x") == '{"degrees": 21}'


@pytest.mark.parametrize("name", ["Qwen", "gemma", "Llama", "Phi", "Mistral"])
def test_real_templates_write_texts_and_objects(shared_data, name: str) -> None:
    source = next(shared_data("chat_templates").glob(f"*{name}*.jinja")).read_text(encoding="utf-8")
    plain = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    split = [{"role": "user", "content": parts("hel", "lo")}, {"role": "assistant", "content": parts("yes")}]
    assert render(source, split) == render(source, plain)
    calls = [
        [{"id": "abc123xyz", "type": "function", "function": {"name": "f", "arguments": a}}] for a in ({"x": "y"}, '{"x":"y"}')
    ]
    if name in ("Qwen", "Llama", "Mistral"):
        texts = [render(source, [plain[0], {"role": "assistant", "tool_calls": call}]) for call in calls]
        assert texts[0] == texts[1] and '{"x": "y"}' in texts[0]


def test_marks_are_not_taken_from_what_users_write() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content | upper }}{% endgeneration %}|{% endfor %}"
    content = "\ue000\ue001\ue002 a \ue100\ue10f\ue001"
    text, spans = chat_template.render_marked(source, [{"role": "user", "content": content}], None, {})
    assert text == content.upper() + "|" and [text[b:e] for b, e in spans] == [content.upper()]
