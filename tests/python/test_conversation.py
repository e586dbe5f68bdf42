"""Which tokens of a conversation carry loss: real templates, templates that rewrite history, tools, several turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lora_c.data import Sample, load_dataset, samples_from_record
from lora_c.errors import DataError
from lora_c.text.tokenizer import Tokenizer

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|eot_id|>",
           "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"]  # fmt: skip
CALL = {"type": "function", "id": "abc123xyz", "function": {"name": "f", "arguments": {"x": "ü"}}}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | more


TWO = [user("hi"), assistant("yo 🦙"), user("more"), assistant("ok")]
SYSTEM = {"role": "system", "content": "Be brief."}


def byte_tokenizer(template: str) -> Tokenizer:
    """Every byte is a token and markers are tokens of their own, as in the byte-level tokenizers of real models."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"}, template)


@pytest.fixture
def family(shared_data) -> Callable[[str], Tokenizer]:
    def find(name: str) -> Tokenizer:
        return byte_tokenizer(next(shared_data("chat_templates").glob(f"*{name}*.jinja")).read_text())

    return find


def split(sample: Sample, tokenizer: Tokenizer) -> list[str]:
    """Texts with loss, one per stretch."""
    stretches, before = [], False
    for i, masked in zip(sample.input_ids, sample.loss_mask, strict=True):
        if masked and not before:
            stretches.append([])
        if masked:
            stretches[-1].append(int(i))
        before = bool(masked)
    return [tokenizer.decode(ids, skip_special_tokens=False) for ids in stretches]


def whole(sample: Sample, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(sample.input_ids.tolist(), skip_special_tokens=False)


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        ("Qwen", ["yo 🦙<|im_end|>\n", "ok<|im_end|>\n"]),
        ("gemma", ["yo 🦙<end_of_turn>\n", "ok<end_of_turn>\n"]),
        ("Llama", ["yo 🦙<|eot_id|>", "ok<|eot_id|>"]),
        ("Phi", ["yo 🦙<|end|>\n", "ok<|end|>\n</s>"]),  # this template ends every text with the end token
        ("Mistral", ["yo 🦙</s>", "ok</s>"]),
    ],
)
def test_turns_of_real_templates(family, name: str, turns: list[str]) -> None:
    tokenizer = family(name)
    samples = samples_from_record({"messages": TWO}, tokenizer, "here")
    assert len(samples) == 1 and split(samples[0], tokenizer) == turns
    if name != "Phi":
        assert whole(samples[0], tokenizer) == tokenizer.apply_chat_template(TWO)


@pytest.mark.parametrize("name", ["Qwen", "Llama", "Phi"])
def test_system_message_carries_no_loss(family, name: str) -> None:
    tokenizer = family(name)
    samples = samples_from_record({"messages": [SYSTEM, *TWO]}, tokenizer, "here")
    assert len(samples) == 1 and len(split(samples[0], tokenizer)) == 2 and "brief" in whole(samples[0], tokenizer)
    assert not any("brief" in text for text in split(samples[0], tokenizer))


def test_template_that_moves_the_system_message_gives_each_turn_the_prompt_that_will_be_seen(family) -> None:
    tokenizer = family("Mistral")
    samples = samples_from_record({"messages": [SYSTEM, *TWO]}, tokenizer, "here")
    assert [split(s, tokenizer) for s in samples] == [["yo 🦙</s>"], ["ok</s>"]]
    assert whole(samples[0], tokenizer) == "<s>[INST]Be brief.\n\nhi[/INST]yo 🦙</s>"
    assert whole(samples[1], tokenizer) == "<s>[INST]hi[/INST]yo 🦙</s>[INST]Be brief.\n\nmore[/INST]ok</s>"


@pytest.mark.parametrize(("name", "called"), [("Qwen", '{"name": "f", "arguments": {"x": "ü"}}'), ("Llama", '"parameters": '),
                                              ("Mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"x": "ü"}')])  # fmt: skip
def test_tool_calls_carry_loss_and_results_do_not(family, name: str, called: str) -> None:
    tokenizer = family(name)
    result = {"role": "tool", "content": "RESULT", "tool_call_id": "abc123xyz"}
    messages = [user("hi"), assistant(None, tool_calls=[CALL]), result, assistant("done")]
    samples = samples_from_record({"messages": messages, "tools": json.dumps(TOOLS)}, tokenizer, "here")
    learned = [text for sample in samples for text in split(sample, tokenizer)]
    assert len(learned) == 2 and called in learned[0] and learned[1].startswith("done")
    assert not any("RESULT" in text for text in learned) and "RESULT" in whole(samples[-1], tokenizer)
    assert '"name":"f","description":"d"' in "".join(whole(samples[0], tokenizer).split())


def test_template_that_drops_past_reasoning() -> None:
    tokenizer = byte_tokenizer(
        "{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content is defined and loop.last %}"
        "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    messages = [user("a"), assistant("b", reasoning_content="why"), user("c"), assistant("d", reasoning_content="how")]
    samples = samples_from_record({"messages": messages}, tokenizer, "here")
    assert [split(s, tokenizer) for s in samples] == [["<think>why</think>b<|end|>"], ["<think>how</think>d<|end|>"]]
    assert whole(samples[1], tokenizer) == "<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>" + (
        "<think>how</think>d<|end|>"
    )


def test_generation_prompt_with_more_than_the_history_shows() -> None:
    tokenizer = byte_tokenizer(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>say: {% endif %}"
    )
    samples = samples_from_record({"messages": TWO}, tokenizer, "here")
    assert [split(s, tokenizer) for s in samples] == [["yo 🦙<|end|>"], ["ok<|end|>"]]
    assert whole(samples[0], tokenizer) == "<|user|>hi<|end|><|assistant|>say: yo 🦙<|end|>"


def test_marks_of_the_template_are_believed() -> None:
    tokenizer = byte_tokenizer(
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
    )
    assert split(samples_from_record({"messages": TWO}, tokenizer, "here")[0], tokenizer) == ["yo 🦙", "ok"]


def test_conversation_that_begins_with_the_assistant() -> None:
    tokenizer = byte_tokenizer(
        "{% if messages[0].role == 'x' %}{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    sample = samples_from_record({"messages": [assistant("hello"), *TWO]}, tokenizer, "here")[0]
    assert split(sample, tokenizer) == ["hello<|end|>", "yo 🦙<|end|>", "ok<|end|>"]


def test_prompt_messages_and_weights_carry_no_loss(family) -> None:
    tokenizer = family("Qwen")
    sample = samples_from_record({"prompt": TWO[:3], "completion": TWO[3:]}, tokenizer, "here")[0]
    assert split(sample, tokenizer) == ["ok<|im_end|>\n"] and "yo" in whole(sample, tokenizer)
    weighted = [TWO[0], TWO[1] | {"weight": 0}, *TWO[2:]]
    assert split(samples_from_record({"messages": weighted}, tokenizer, "here")[0], tokenizer) == ["ok<|im_end|>\n"]


def test_sharegpt_with_system_and_functions(family) -> None:
    tokenizer = family("Qwen")
    turns = [
        ("human", "hi"),
        ("function_call", '{"name": "f", "arguments": {"x": 1}}'),
        ("observation", "RESULT"),
        ("gpt", "done"),
    ]
    conversation = [{"from": role, "value": value} for role, value in turns]
    record = {"conversations": conversation, "system": "Be brief.", "tools": json.dumps(TOOLS)}
    sample = samples_from_record(record, tokenizer, "here")[0]
    learned = split(sample, tokenizer)
    assert len(learned) == 2 and '{"name": "f", "arguments": {"x": 1}}' in learned[0] and learned[1] == "done<|im_end|>\n"
    assert "Be brief." in whole(sample, tokenizer) and "<tools>" in whole(sample, tokenizer)


def test_alpaca_with_and_without_a_template(family) -> None:
    record = {"instruction": "Add", "input": "1 2", "output": "3", "system": "S."}
    chat = family("Qwen")
    sample = samples_from_record(record, chat, "here")[0]
    assert split(sample, chat) == ["3<|im_end|>\n"] and "Add\n\n1 2" in whole(sample, chat) and "S." in whole(sample, chat)
    plain = byte_tokenizer("")
    plain.chat_template = None
    sample = samples_from_record(record, plain, "here")[0]
    assert whole(sample, plain) == "S.\n\n### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:\n3</s>"
    assert split(sample, plain) == ["3</s>"]


def test_completion_that_begins_inside_a_character_of_several_tokens(family) -> None:
    tokenizer = family("Qwen")
    sample = samples_from_record({"prompt": "日", "completion": "本🦙"}, tokenizer, "here")[0]
    assert split(sample, tokenizer) == ["本🦙</s>"]


def test_stories_tokenizer_agrees_with_the_text(stories: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(stories)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}" + (
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": TWO}) + "\n", encoding="utf-8")
    data = load_dataset(tmp_path / "a.jsonl", tokenizer)
    assert [text.strip() for text in split(data[0], tokenizer)] == ["yo 🦙</s>", "ok</s>"]
    assert data[0].input_ids.tolist() == tokenizer.encode(tokenizer.apply_chat_template(TWO), add_special_tokens=False)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": "x"}, "here: expected 'messages' to be a list"),
        ({"messages": [{"role": 3, "content": "x"}]}, "here: expected message 0 to have 'role'"),
        ({"messages": [user("a"), assistant(None)]}, "here: expected message 1 to have 'content' or 'tool_calls'"),
        ({"messages": [user("a")]}, "here: expected at least one message with the role 'assistant'"),
        ({"messages": [user("a"), assistant("b", weight=0)]}, "here: expected at least one message with the role 'assistant'"),
        ({"messages": [user(["a"]), assistant("b")]}, "here: messages: expected messages with"),
        ({"messages": [user("a\ud800"), assistant("b")]}, "here: text: expected valid Unicode"),
        ({"messages": TWO, "tools": "{"}, "here: expected 'tools' to be a list or one in JSON"),
        ({"messages": TWO, "tools": 3}, "here: expected 'tools' to be a list, got a int"),
        ({"prompt": [user("a")], "completion": "b"}, "here: expected 'completion' to be a list of messages"),
        ({"prompt": ["x"], "completion": ["y"]}, "here: expected message 0"),
        ({"prompt": "a"}, r"here: expected 'completion' to be a string, got a record without it, with the keys \['prompt'\]"),
        ({"prompt": "a", "completion": None}, "here: expected 'completion' to be a string, got NoneType"),
        ({"conversations": [{"from": "gtp", "value": "x"}]}, "here: expected 'from' to be one of .*, got 'gtp'"),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, "here: expected 'from' to be one of"),
        ({"conversations": [{"from": "function_call", "value": "f(x)"}]}, "here: expected a 'function_call' to hold JSON"),
        ({"conversations": [], "system": 3}, "here: expected 'system' to be a string"),
        ({"instruction": "a", "output": "b", "input": 3}, "here: expected 'input' to be a string"),
        ({"text": None}, "here: expected 'text' to be a string"),
        ({}, r"here: expected 'messages'.* got the keys \[\]"),
    ],
)
def test_records_that_do_not_fit_are_refused_with_their_place(family, record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        samples_from_record(record, family("Qwen"), "here")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | length }}{% for m in messages %}{{ m.role }}{% endfor %}",
        "{{ messages[-1].content }}{{ messages | length }}{{ messages[0].content }}",
    ],
)
def test_templates_whose_turns_cannot_be_told_apart_are_refused(template: str) -> None:
    with pytest.raises(DataError, match="here: expected the chat template to write turn 1 .*use 'prompt'/'completion' data"):
        samples_from_record({"messages": TWO[:2]}, byte_tokenizer(template), "here")


def test_long_conversation_keeps_its_first_tokens_and_is_counted(family, tmp_path: Path) -> None:
    tokenizer = family("Gemma".lower())
    rows = [{"messages": TWO}, {"messages": [user("x" * 200), assistant("y")]}, {"messages": TWO[:2]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = load_dataset(tmp_path / "a.jsonl", tokenizer, max_seq_length=40)
    assert (data.n_examples, data.n_truncated, data.n_without_loss, len(data)) == (3, 2, 1, 2)
    assert "2 cut" in data.report() and "1 left out" in data.report()
    full = samples_from_record(rows[0], tokenizer, "here")[0]
    assert np.array_equal(data[0].input_ids, full.input_ids[:40]) and np.array_equal(data[0].loss_mask, full.loss_mask[:40])


OPENS_ALWAYS = (  # as the first templates of Llama 3
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}"
)


def test_an_opening_that_stands_behind_every_answer_is_no_part_of_it() -> None:
    asked = OPENS_ALWAYS.replace("{% endfor %}", "{% endfor %}{% if add_generation_prompt %}") + "{% endif %}"
    for messages in (TWO, TWO[:2], [SYSTEM, *TWO]):
        always, when_asked = (
            samples_from_record({"messages": messages}, byte_tokenizer(template), "here") for template in (OPENS_ALWAYS, asked)
        )
        assert len(always) == len(when_asked) == 1
        assert always[0].input_ids.tolist() == when_asked[0].input_ids.tolist()
        assert always[0].loss_mask.tolist() == when_asked[0].loss_mask.tolist()


def test_an_end_of_prompts_that_is_also_one_of_answers_stays() -> None:
    tokenizer = byte_tokenizer(  # as Phi-3's: the question opens the answer, and the line break behind both is the same
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}<|end|>\n<|assistant|>\n{% else %}"
        "{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    )
    (sample,) = samples_from_record({"messages": TWO}, tokenizer, "here")
    assert split(sample, tokenizer) == ["yo 🦙<|end|>\n", "ok<|end|>\n"]


def test_tool_calls_of_a_template_that_opens_reasoning_for_answers_only() -> None:
    tokenizer = byte_tokenizer(
        "{% for m in messages %}<|{{ m.role }}|>{% if m.tool_calls %}<call>f{{ m.tool_calls[0].function.arguments | tojson }}"
        "{% elif m.role == 'assistant' %}<think>\n{{ m.reasoning_content }}</think>{{ m.content }}{% else %}{{ m.content }}"
        "{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
    )
    (sample,) = samples_from_record({"messages": [user("hi"), assistant(None, tool_calls=[CALL])]}, tokenizer, "here")
    assert whole(sample, tokenizer).startswith("<|user|>hi<|end|><|assistant|><think>\n")
    assert split(sample, tokenizer) == ['\n</think>\n\n<call>f{"x": "ü"}<|end|>']
