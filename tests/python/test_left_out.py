"""What a chat template drops is in a sample all the same, or told with its count."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lora_c.data import load_dataset, samples_from_record
from lora_c.notices import LoraCWarning
from lora_c.text.tokenizer import Tokenizer

R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<U>' + m.content }}{% elif m.role == 'assistant' %}"
    "{{ '<A>' }}{% generation %}{{ m.content.split('</think>')[-1] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<A><think>\n' }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}{{ '<A>' }}"
    "{% generation %}{% if loop.last and parts | length > 1 %}"
    "{{ '<think>\n' + parts[0].removeprefix('<think>').strip() + '\n</think>\n\n' }}"
    "{% endif %}{{ parts[-1].strip() + '</s>' }}{% endgeneration %}{% else %}{{ '<U>' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<A>' }}{% endif %}"
)
CONTENT_OR_CALLS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function | tojson }}"
    "{% endfor %}{% else %}{{ m.content }}{% endif %}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_CALLS = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}<{{ m.role }}>{{ m.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CALL = {"type": "function", "id": "abc123xyz", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


def untagged(template: str) -> str:
    return template.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def byte_tokenizer(template: str) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"}, template)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | more


def read(messages: list[dict[str, Any]], template: str, **more: Any) -> tuple[list[tuple[str, str]], list[str]]:
    """(prompt, what carries loss) of each sample, and what was told."""
    tokenizer, told = byte_tokenizer(template), Counter[str]()
    pairs = []
    for sample in samples_from_record({"messages": messages} | more, tokenizer, "here", told):
        at = int(np.argmax(sample.loss_mask))
        assert sample.loss_mask[at:].all()
        ids = sample.input_ids.tolist()
        pairs.append((tokenizer.decode(ids[:at], False), tokenizer.decode(ids[at:], False)))
    return pairs, sorted(told)


@pytest.mark.parametrize("template", [R1, untagged(R1)])
@pytest.mark.parametrize(
    ("answer", "learned"),
    [
        (assistant("<think>\nhm, 2\n</think>\n\n4"), "hm, 2\n</think>\n\n4</s>"),
        (assistant("<think>hm, 2</think>4"), "hm, 2</think>4</s>"),
        (assistant("hm, 2</think>4"), "hm, 2</think>4</s>"),
        (assistant("4", reasoning_content="hm, 2"), "hm, 2\n</think>\n\n4</s>"),
        (assistant("4", thinking="hm, 2"), "hm, 2\n</think>\n\n4</s>"),
        (assistant("4", reasoning="hm, 2"), "hm, 2\n</think>\n\n4</s>"),
    ],
)
def test_reasoning_that_the_template_drops_follows_the_tag_that_the_prompt_opens(
    template: str, answer: dict[str, Any], learned: str
) -> None:
    assert read([user("2 + 2?"), answer], template) == ([("<U>2 + 2?<A><think>\n", learned)], [])


def test_each_turn_holds_its_own_reasoning_and_sees_a_history_without() -> None:
    messages = [user("a"), assistant("<think>why</think>1"), user("b"), assistant("<think>how</think>2")]
    for template in (R1, untagged(R1)):
        pairs, told = read(messages, template)
        assert (
            pairs == [("<U>a<A><think>\n", "why</think>1</s>"), ("<U>a<A>1</s><U>b<A><think>\n", "how</think>2</s>")]
            and not told
        )
    for template in (QWEN3, untagged(QWEN3)):
        pairs, told = read(messages, template)
        assert pairs == [
            ("<U>a<A>", "<think>\nwhy\n</think>\n\n1</s>"), ("<U>a<A>1</s><U>b<A>", "<think>\nhow\n</think>\n\n2</s>")
        ] and not told  # fmt: skip


def test_an_answer_without_reasoning_closes_the_tag_that_the_prompt_opens() -> None:
    assert read([user("2 + 2?"), assistant("4")], untagged(R1)) == (
        [("<U>2 + 2?<A><think>\n", "\n</think>\n\n4</s>")], [],
    )  # fmt: skip


def test_reasoning_without_a_place_in_the_template_is_told() -> None:
    pairs, told = read([user("a"), assistant("4", reasoning_content="two and two")], CONTENT_OR_CALLS)
    assert pairs == [("<user>a</s><assistant>", "4</s>")]
    assert len(told) == 1 and "does not write reasoning of answers" in told[0]


def test_content_beside_tool_calls_and_tool_calls_that_are_dropped_are_told() -> None:
    messages = [user("a"), assistant("let me see", tool_calls=[CALL])]
    pairs, told = read(messages, CONTENT_OR_CALLS, tools=TOOLS)
    assert len(told) == 2 and "does not write content of answers" in told[0] and "does not write tools" in told[1]
    pairs, told = read(messages, NO_CALLS)
    assert pairs[0][1] == "let me see</s>" and len(told) == 1 and "does not write tool calls of answers" in told[0]


def test_messages_of_unknown_roles_are_told() -> None:
    messages = [
        user("a"),
        {"role": "tool", "content": "42 degrees"},
        {"role": "developer", "content": "Be brief"},
        assistant("b"),
    ]
    _, told = read(messages, NO_CALLS)
    assert [line.split(";")[0] for line in told] == [
        "the chat template does not write messages of the role 'developer'",
        "the chat template does not write messages of the role 'tool'",
    ]


def test_a_data_set_tells_each_line_once_with_its_count(tmp_path: Path) -> None:
    rows = [[user("a"), assistant("4", reasoning_content="two")]] * 3 + [[user("a"), assistant("4")]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")
    with pytest.warns(LoraCWarning, match="3 of 4 examples: the chat template does not write reasoning") as told:
        load_dataset(tmp_path / "a.jsonl", byte_tokenizer(CONTENT_OR_CALLS))
    assert len(told) == 1


def test_one_record_tells_at_once() -> None:
    with pytest.warns(LoraCWarning, match="does not write reasoning"):
        messages = [user("a"), assistant("4", reasoning_content="two")]
        samples_from_record({"messages": messages}, byte_tokenizer(CONTENT_OR_CALLS), "here")


def test_answers_that_say_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [[user("a"), assistant("")], [user("a"), assistant(" \n")], [user("a"), assistant(""), user("b"), assistant("c")]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")
    data = load_dataset(tmp_path / "a.jsonl", byte_tokenizer(CONTENT_OR_CALLS))
    assert (len(data), data.n_without_loss) == (1, 2)


def test_an_end_token_in_an_answer_is_not_written_twice() -> None:
    template = "{{ bos_token }}" + CONTENT_OR_CALLS
    messages = [user("a"), assistant("b</s>"), user("c"), assistant("d</s>\n")]
    pairs, _ = read(messages[:2], template)
    assert pairs == [("<s><user>a</s><assistant>", "b</s>")]
    tokenizer = byte_tokenizer(template)
    (sample,) = samples_from_record({"messages": messages}, tokenizer, "here")
    assert tokenizer.decode(sample.input_ids, False) == "<s><user>a</s><assistant>b</s><user>c</s><assistant>d</s>"
    pairs, _ = read(messages[:2], template.replace("</s>", ""))  # the template writes none: the answer's own stays
    assert pairs[0][1] == "b</s>"
