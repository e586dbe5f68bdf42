"""Chat templates: text, token ids and marks equal to transformers, and what a hostile template cannot do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_c.errors import DataError
from lora_c.text import chat_template
from lora_c.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
GOLDEN: dict[str, Any] = json.loads((ROOT / "tests/golden/chat_golden.json").read_text(encoding="utf-8"))
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "date_string": "26 Jul 2024"}
OWN = sorted(GOLDEN["templates"])


@pytest.fixture
def template(shared_data) -> Any:
    """The source of a template by its name in the golden file."""

    def find(name: str) -> str:
        if name in GOLDEN["templates"]:
            return GOLDEN["templates"][name]
        return (shared_data("chat_templates") / f"{name}.jinja").read_text(encoding="utf-8")

    return find


def render(source: str, case: str) -> str:
    conversation = GOLDEN["conversations"][case.removesuffix("+prompt")]
    return chat_template.render(
        source, conversation["messages"], case.endswith("+prompt"), conversation.get("tools"), VARIABLES
    )


@pytest.mark.parametrize("name", GOLDEN["text"])
def test_text_is_that_of_transformers(template, name: str) -> None:
    source = template(name)
    for case, expected in GOLDEN["text"][name].items():
        if expected is None:
            with pytest.raises(DataError, match="messages: expected"):
                render(source, case)
        else:
            assert render(source, case) == expected, case


def test_every_template_at_hand_has_golden_text(shared_data) -> None:
    at_hand = {path.stem for path in shared_data("chat_templates").glob("*.jinja")}
    assert len(at_hand) >= 5 and at_hand <= set(GOLDEN["text"])
    for name in at_hand:
        assert sum(text is not None for text in GOLDEN["text"][name].values()) >= 8


@pytest.mark.parametrize("name", GOLDEN["text"])
@pytest.mark.parametrize("folder", ["base_model", "stories260K_hf"])
def test_token_ids_are_those_of_transformers(template, shared_data, folder: str, name: str) -> None:
    path = ROOT / "python/lora_c/base_model" if folder == "base_model" else shared_data(folder)
    tokenizer = Tokenizer.from_folder(path)
    tokenizer.chat_template = template(name)
    for case, expected in GOLDEN["ids"][folder][name].items():
        if expected is not None:
            messages = GOLDEN["conversations"][case.removesuffix("+prompt")]["messages"]
            text = tokenizer.apply_chat_template(messages, case.endswith("+prompt"), date_string=VARIABLES["date_string"])
            assert tokenizer.encode(text, add_special_tokens=False) == expected, case


@pytest.mark.parametrize("case", GOLDEN["masks"])
def test_marked_tokens_are_those_of_transformers(shared_data, case: str) -> None:
    tokenizer = Tokenizer.from_folder(shared_data("stories260K_hf"))
    tokenizer.chat_template = GOLDEN["templates"]["marked"]
    marked = tokenizer.marked_chat(GOLDEN["conversations"][case]["messages"])
    assert marked is not None
    text, spans = marked
    assert text == GOLDEN["text"]["marked"][case]
    ids, offsets = tokenizer.encode_with_offsets(text, add_special_tokens=False)
    mask = [int(any(b <= begin < e and end > begin for b, e in spans)) for begin, end in offsets]
    assert (ids, mask) == (GOLDEN["masks"][case]["ids"], GOLDEN["masks"][case]["mask"])


def test_marks_survive_nesting_trimming_and_reuse() -> None:
    source = (
        "{% set x %}{% generation %} a{% generation %}b{% endgeneration %} {% endgeneration %}{% endset %}"
        "<{{ x | trim }}>{{ x }}{%- generation -%} {% endgeneration %}"
    )
    assert chat_template.marks_assistant(source)
    text, spans = chat_template.render_marked(source, [], None, {})
    assert text == "< ab > ab " and [text[b:e] for b, e in spans] == [" ab ", " ab ", ""]
    assert chat_template.render(source, [], False, None, {}) == "<ab> ab "


def test_a_template_without_marks_has_none(shared_data) -> None:
    tokenizer = Tokenizer.from_folder(shared_data("stories260K_hf"))
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert tokenizer.marked_chat([{"role": "user", "content": "x"}]) is None


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 10 }}",
        "{{ [1] * 100000000 * 1000 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{% for i in range(99999) %}{% for j in range(9999) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages.__class__ }}{{ ''.__class__.__mro__ }}{{ cycler.__init__.__globals__.os }}",
        "{{ messages.append(1) }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
    ],
)
def test_hostile_templates_end_in_one_error(source: str) -> None:
    with pytest.raises(DataError, match="messages: expected") as error:
        chat_template.render(source, [{"role": "user", "content": "x"}], False, None, {})
    assert "\n" not in str(error.value)


def test_tool_template_travels_with_a_saved_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    from lora_c.model.opening import load_model

    (tiny_model_dir / "chat_template.jinja").write_text("one")
    (tiny_model_dir / "additional_chat_templates").mkdir()
    (tiny_model_dir / "additional_chat_templates/tool_use.jinja").write_text("two")
    load_model(tiny_model_dir).save(tmp_path / "copy")
    (tmp_path / "own").mkdir()
    Tokenizer.from_folder(tiny_model_dir).save(tmp_path / "own")
    for folder in (tmp_path / "copy", tmp_path / "own"):
        tokenizer = Tokenizer.from_folder(folder)
        assert (tokenizer.chat_template, tokenizer.tool_template) == ("one", "two")
