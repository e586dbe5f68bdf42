"""Keys of records: heeded, refused by name, or the user's own; flags of turns; other forms of conversations."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lora_c.data import samples_from_record
from lora_c.errors import DataError
from lora_c.text.tokenizer import Tokenizer

TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TAGGED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>{% endgeneration %}"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)


def byte_tokenizer(template: str | None) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"}, template)


def read(record: dict[str, Any], template: str | None) -> tuple[str, list[str]]:
    """The text of a record's one sample, and the stretches of it that carry loss."""
    tokenizer = byte_tokenizer(template)
    (sample,) = samples_from_record(record, tokenizer, "here", Counter())
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sample.loss_mask, [0]])))
    stretches = [tokenizer.decode(sample.input_ids[b:e], False) for b, e in zip(edges[::2], edges[1::2], strict=True)]
    return tokenizer.decode(sample.input_ids, False), stretches


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text} | more


def assistant(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | more


TURNS = [user("a"), assistant("b")]
HISTORY = {"instruction": "And his dog?", "output": "Rex", "history": [["Who is Tom?", "A boy"], ["Where?", "Here"]]}


def test_history_of_alpaca_is_turns_before_whose_answers_are_learned() -> None:
    text, learned = read(HISTORY, TEMPLATE)
    assert text == (
        "<user>Who is Tom?</s><assistant>A boy</s><user>Where?</s><assistant>Here</s><user>And his dog?</s><assistant>Rex</s>"
    )
    assert learned == ["A boy</s>", "Here</s>", "Rex</s>"]
    text, learned = read(HISTORY | {"system": "S.", "input": "I"}, None)
    assert learned == ["A boy</s>", "Here</s>", "Rex</s>"]
    assert text == (
        "S.\n\n### Instruction:\nWho is Tom?\n\n### Response:\nA boy</s>\n\n### Instruction:\nWhere?\n\n"
        "### Response:\nHere</s>\n\n### Instruction:\nAnd his dog?\n\n### Input:\nI\n\n### Response:\nRex</s>"
    )


@pytest.mark.parametrize("history", ["x", [["a"]], [["a", 1]], [{"q": "a"}]])
def test_a_history_of_another_form_is_refused(history: Any) -> None:
    with pytest.raises(DataError, match=r"expected 'history' to be a list of \[question, answer\]"):
        read({"instruction": "a", "output": "b", "history": history}, TEMPLATE)


@pytest.mark.parametrize("key", ["weight", "train", "training", "trainable", "loss"])
@pytest.mark.parametrize("template", [TEMPLATE, TAGGED])
def test_flags_of_turns_are_heeded_in_messages_and_conversations(key: str, template: str) -> None:
    off = 0 if key == "weight" else False
    messages = [user("a", **{key: off}), assistant("b", **{key: off}), user("c"), assistant("d", **{key: True})]
    assert read({"messages": messages}, template)[1] == ["d</s>"]
    names = {"user": "human", "assistant": "gpt"}
    turns = [{"from": names[m["role"]], "value": m["content"]} | {k: v for k, v in m.items() if k == key} for m in messages]
    assert read({"conversations": turns}, template)[1] == ["d</s>"]


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (assistant("b", weight=0.5), "'weight' of message 1 to be 0 or 1, got '0.5'"),
        (assistant("b", train="no"), "'train' of message 1 to be 0 or 1, got 'no'"),
        (assistant("b", weight=1, train=False), "flags of message 1 to agree"),
        (assistant("b", train_detail=[{"begin_offset": 0}]), "message 1 without 'train_detail'"),
        (user("b", train=True), "'train' of message 1 to be 0, got 1 at the role 'user'"),
    ],
)
def test_flags_that_say_no_yes_or_no_are_refused(turn: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"here: expected (the )?{message}"):
        read({"messages": [user("a"), turn, assistant("c")]}, TEMPLATE)


@pytest.mark.parametrize(
    ("record", "key"),
    [
        ({"prompt": "a", "completion": "b", "system": "s"}, "system"),
        ({"prompt": "a", "completion": "b", "history": [["c", "d"]]}, "history"),
        ({"prompt": "a", "completion": "b", "tools": [{"name": "f"}]}, "tools"),
        ({"prompt": "a", "completion": "b", "context": "c"}, "context"),
        ({"prompt": "a", "completion": "b", "label": False}, "label"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen"),
        ({"prompt": "a", "completion": "b", "images": ["x.png"]}, "images"),
        ({"messages": TURNS, "history": [["c", "d"]]}, "history"),
        ({"messages": TURNS, "documents": [{"text": "d"}]}, "documents"),
        ({"messages": TURNS, "images": ["x.png"]}, "images"),
        ({"messages": TURNS, "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "documents": ["d"]}, "documents"),
        ({"instruction": "a", "output": "b", "context": "c"}, "context"),
        ({"instruction": "a", "output": "b", "chosen": "c"}, "chosen"),
        ({"text": "a", "prompt": "b"}, "prompt"),
        ({"text": "a", "system": "b"}, "system"),
        ({"messages": TURNS, "system_prompt": "Be brief"}, "system_prompt"),
        ({"messages": TURNS, "enable_thinking": False}, "enable_thinking"),
        ({"instruction": "a", "output": "b", "inputs": "c"}, "inputs"),
        ({"prompt": "a", "completion": "b", "suffix": "c"}, "suffix"),
        ({"prompt": "a", "completion": "b", "prefix": "c"}, "prefix"),
        ({"prompt": "a", "completion": "b", "weight": 0.1}, "weight"),
        ({"messages": TURNS, "train_on_inputs": True}, "train_on_inputs"),
        ({"messages": TURNS, "mask_history": True}, "mask_history"),
    ],
)
def test_keys_that_would_change_the_text_are_refused_by_name(record: dict[str, Any], key: str) -> None:
    with pytest.raises(DataError, match=f"here: expected a '.*' record without '{key}', got "):
        read(record, TEMPLATE)


def test_a_key_in_other_letters_is_refused() -> None:
    with pytest.raises(DataError, match="here: expected the key 'input', got 'Input'; give it the name in small letters"):
        read({"instruction": "a", "Input": "b", "output": "c"}, TEMPLATE)


@pytest.mark.parametrize("key", ["images", "image", "audio", "video", "documents", "attachments"])
def test_a_message_with_more_than_text_is_refused(key: str) -> None:
    with pytest.raises(DataError, match=f"here: expected message 0 without '{key}', got one with it; lora-c trains on text"):
        read({"messages": [TURNS[0] | {key: ["a.png"]}, *TURNS[1:]]}, TEMPLATE)
    assert read({"messages": [TURNS[0] | {key: None}, *TURNS[1:]]}, TEMPLATE) == read({"messages": TURNS}, TEMPLATE)


def test_a_prompt_that_ends_inside_of_the_answer_is_refused() -> None:
    begun, rest = {"role": "assistant", "content": "He"}, {"role": "assistant", "content": "llo"}
    with pytest.raises(DataError, match="here: expected 'prompt' to end before the answer"):
        read({"prompt": [TURNS[0], begun], "completion": [rest]}, TEMPLATE)
    read({"prompt": [TURNS[0], begun, TURNS[0]], "completion": [rest]}, TEMPLATE)


@pytest.mark.parametrize(
    ("extra", "lost"),
    [
        ({"refusal": "I cannot"}, "refusal of answers"),
        ({"reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}, "reasoning_details of answers"),
        ({"thought": "hm"}, "reasoning of answers"),
    ],
)
def test_parts_of_an_answer_that_no_template_writes_are_told(extra: dict[str, Any], lost: str) -> None:
    told: Counter[str] = Counter()
    answer = {"role": "assistant", "content": "Hello"} | extra
    samples_from_record({"messages": [TURNS[0], answer]}, byte_tokenizer(TEMPLATE), "here", told)
    assert any(lost in line for line in told), told


@pytest.mark.parametrize("record", [{"text": "a"}, {"prompt": "a", "completion": "b"}, {"messages": TURNS}])
def test_keys_of_the_users_own_and_keys_without_a_value_pass(record: dict[str, Any]) -> None:
    own = {"id": 3, "source": "web", "lang": "en", "score": 0.5, "history": [], "system": None, "images": None}
    assert read(record | own, TEMPLATE) == read(record, TEMPLATE)


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"messages": TURNS, "prompt": "a"}, "trained on 'messages'; left aside: 'prompt'"),
        ({"messages": TURNS, "text": "x"}, "trained on 'messages'; left aside: 'text'"),
        ({"instruction": "a", "output": "b", "text": "x"}, "trained on 'instruction'; left aside: 'text'"),
        ({"prompt": "a", "completion": "b", "text": "x"}, "trained on 'prompt'; left aside: 'text'"),
    ],
)
def test_a_record_of_two_kinds_is_told(record: dict[str, Any], line: str) -> None:
    told: Counter[str] = Counter()
    samples_from_record(record, byte_tokenizer(TEMPLATE), "here", told)
    assert list(told) == [line]


def test_system_and_tools_stand_beside_every_form_of_messages() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    expected = "[f]<system>S.</s><user>a</s><assistant>b</s>"
    conversation = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    for record in (
        {"messages": TURNS}, {"conversations": conversation}, {"conversations": TURNS}, {"instruction": "a", "output": "b"},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
    ):  # fmt: skip
        assert read(record | {"system": "S.", "tools": tools}, TEMPLATE) == (expected, ["b</s>"]), record
    with pytest.raises(DataError, match="expected one system message"):
        read({"messages": [{"role": "system", "content": "T."}, *TURNS], "system": "S."}, TEMPLATE)


def test_function_calls_of_the_older_form_are_tool_calls() -> None:
    call = {"name": "f", "arguments": '{"x": "ü"}'}
    messages = [
        user("a"),
        assistant("", function_call=call),
        {"role": "function", "name": "f", "content": "R"},
        assistant("b"),
    ]
    text, learned = read({"messages": messages, "functions": [{"name": "f"}]}, TEMPLATE)
    assert text.startswith("[f]") and "<tool>R</s>" in text
    assert learned == ['{"name": "f", "arguments": {"x": "ü"}}</s>', "b</s>"]


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "q", "output": "a", "context": "", "system": "", "history": []},
        {"prompt": "q", "completion": "a", "system": "", "input": "", "tools": ""},
        {"text": "a", "prompt": "", "context": ""},
        {"messages": [user("q"), assistant("a")], "reasoning": "", "images": []},
    ],
)
def test_an_empty_text_under_a_key_says_nothing(record: dict[str, Any]) -> None:
    kept = {key: value for key, value in record.items() if value not in ("", [])}
    assert read(record, TEMPLATE) == read(kept, TEMPLATE)


@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_copies_of_what_turns_say_are_left_aside_and_counted(form: str) -> None:
    names = ("role", "content") if form == "messages" else ("from", "value")
    turns = [dict(zip(names, pair, strict=True)) for pair in (("user", "What is it?"), ("assistant", "A dog."))]
    lines: Counter[str] = Counter()
    record = {form: turns, "instruction": "What is it?", "output": "A dog."}
    samples_from_record(record, byte_tokenizer(TEMPLATE), "here", lines)
    assert [line for line in lines if "left aside: 'instruction', 'output'" in line] == list(lines) and len(lines) == 1
    with pytest.raises(DataError, match=f"here: expected a '{form}' record without 'context', got one with it"):
        read(record | {"context": "Another text"}, TEMPLATE)


@pytest.mark.parametrize("key", ["label", "kto_tag"])
@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(
    "record",
    [
        {"messages": TURNS},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"instruction": "a", "output": "b"},
        {"prompt": "a", "completion": "b"},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
    ],
)
def test_judged_answers_are_refused(record: dict[str, Any], key: str, value: bool) -> None:
    with pytest.raises(DataError, match=f"record without '{key}', got one with it; keep the desirable answers only"):
        read(record | {key: value}, TEMPLATE)
    assert read(record | {key: "a class"}, TEMPLATE) == read(record, TEMPLATE)


def test_a_key_that_is_missing_is_named_with_those_that_are_there() -> None:
    for record, missing, keys in (
        ({"instruction": "q", "context": "c", "response": "a"}, "output", r"\['context', 'instruction', 'response'\]"),
        ({"prompt": "q", "response": "a"}, "completion", r"\['prompt', 'response'\]"),
    ):
        with pytest.raises(DataError, match=f"here: expected '{missing}' to be a string, got a record without it.* {keys}"):
            read(record, TEMPLATE)
    with pytest.raises(DataError, match="without 'chosen'.* not on preferences"):
        read({"prompt": "q", "chosen": "a", "rejected": "b"}, TEMPLATE)
