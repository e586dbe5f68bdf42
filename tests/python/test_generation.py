"""Sampling, stopping and streaming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_values import write_values

from lora_c._core import DECODE_BATCH
from lora_c.configs import GenerationConfig
from lora_c.errors import ConfigError, DataError
from lora_c.generation.answers import generate_ids
from lora_c.generation.sampling import choose_token, probabilities
from lora_c.model.opening import load_model
from lora_c.text.final_message import render_open
from lora_c.text.prompts import prompt_ids

LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 3.0], np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def test_probabilities() -> None:
    config = GenerationConfig(temperature=0.5)
    np.testing.assert_allclose(probabilities(LOGITS, config), softmax(LOGITS.astype(np.float64) / 0.5))
    kept = probabilities(LOGITS, GenerationConfig(top_k=2))
    np.testing.assert_allclose(kept, [0, 0.5, 0, 0, 0.5])
    p = softmax(LOGITS.astype(np.float64))
    assert probabilities(LOGITS, GenerationConfig(top_p=p[1] * 0.9)).nonzero()[0].tolist() == [1]
    assert probabilities(LOGITS, GenerationConfig(top_p=p[1] * 1.1)).nonzero()[0].tolist() == [1, 4]
    assert probabilities(LOGITS, GenerationConfig(top_p=1.0)).all()


def test_a_tiny_temperature_is_nearly_greedy() -> None:
    for temperature in (1e-5, 1e-300, 5e-324):
        np.testing.assert_array_equal(probabilities(LOGITS, GenerationConfig(temperature=temperature)), [0, 0.5, 0, 0, 0.5])


def test_greedy_and_draws() -> None:
    generator = np.random.Generator(np.random.Philox(0))
    assert choose_token(LOGITS, GenerationConfig(), generator) == 1
    assert choose_token(LOGITS, GenerationConfig(temperature=0.0, do_sample=True), generator) == 1
    config = GenerationConfig(temperature=1.0)
    draws = np.bincount([choose_token(LOGITS, config, generator) for _ in range(20_000)], minlength=5) / 20_000
    np.testing.assert_allclose(draws, softmax(LOGITS), atol=0.015)


def test_same_seed_same_text(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir)
    options = {"max_new_tokens": 12, "temperature": 2.0, "ignore_eos": True}
    one = model.generate("w3 w4", **options, seed=1)
    assert one == model.generate("w3 w4", **options, seed=1) != model.generate("w3 w4", **options, seed=2)
    assert "".join(model.stream("w3 w4", GenerationConfig(**options), seed=1)) == one


def test_cached_decoding_equals_whole_forward(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir)
    ids = [3, 4, 5]
    got = list(generate_ids(model, ids, GenerationConfig(max_new_tokens=10, ignore_eos=True)))
    for token in got:
        assert token == int(model.decoder.logits(np.array(ids, np.int32))[-1].argmax())
        ids.append(token)


def test_stops(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir)
    free = GenerationConfig(max_new_tokens=1000, ignore_eos=True)
    ids = list(generate_ids(model, [3, 4], free))
    assert len(ids) == 62  # the context is 64
    assert list(generate_ids(model, [3, 4], GenerationConfig(max_new_tokens=5, ignore_eos=True))) == ids[:5]
    model.eos_token_ids = frozenset({ids[3]})
    assert list(generate_ids(model, [3, 4], GenerationConfig())) == ids[: ids.index(ids[3])]


def test_stop_strings_are_cut_and_never_shown(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir)
    options = {"max_new_tokens": 20, "ignore_eos": True}
    text = model.generate("w3 w4", **options)
    stop = text[15:21]
    pieces = list(model.stream("w3 w4", **options, stop_strings=[stop, "never"]))
    assert "".join(pieces) == text[: text.index(stop)] and all(pieces)


BATCH_OPTIONS = [
    {"max_new_tokens": 9, "ignore_eos": True},
    {"max_new_tokens": 12, "temperature": 2.0, "seed": 3},  # ends at end tokens, at different steps
    {"max_new_tokens": 12, "temperature": 2.0, "seed": 0, "ignore_eos": True, "stop_strings": ["7", "w4"]},
]


@pytest.mark.parametrize("options", BATCH_OPTIONS)
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_batch_equals_one_by_one(make_model: Callable[..., Path], quantize: Any, options: dict[str, Any]) -> None:
    model = load_model(make_model(hidden_size=64, intermediate_size=128, num_attention_heads=2), quantize=quantize)
    model.add_adapter(r=4, target_modules="all-linear")
    rng = np.random.default_rng(0)
    for name in model.adapters:
        write_values(model.adapters[name].B, rng.standard_normal(model.adapters[name].B.shape) * 0.1)
    lengths = [1, 2, 40, 3, 5, 25, 7, 8, 60, 10, 1, 4, 13, 2, 30, 6, 24, 4, 63, 20]  # more than fit one call
    prompts = [rng.integers(3, 64, n).tolist() for n in lengths]
    assert len(prompts) > DECODE_BATCH
    alone = [model.generate(prompt, **options) for prompt in prompts]
    assert model.generate(prompts, **options) == alone
    assert len(set(alone)) > len(alone) // 2  # the answers differ, so that a mixed-up sequence shows


def test_batch_of_texts_and_messages(tiny_model_dir: Path) -> None:
    (tiny_model_dir / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    model = load_model(tiny_model_dir)
    options = {"max_new_tokens": 5, "ignore_eos": True}
    texts = ["w3 w4", "w5", "w6 w7 w8"]
    alone = [model.generate(text, **options) for text in texts]
    assert model.generate(texts, **options) == alone
    assert model.generate(texts[:1], **options) == alone[:1]
    assert model.generate([[{"role": "user", "content": text}] for text in texts], **options) == alone
    with pytest.raises(DataError, match="at least one token"):
        model.generate(["w3", ""])


def test_logits_of_a_batch_have_the_bits_of_each_alone(tiny_model_dir: Path) -> None:
    decoder = load_model(tiny_model_dir).decoder
    together, alone = decoder.new_cache(8, DECODE_BATCH), decoder.new_cache(8, 1)
    cu, tokens = np.arange(DECODE_BATCH + 1), np.arange(DECODE_BATCH) + 5
    first, second = (
        decoder.decode(together, tokens, cu_seqlens=cu),
        decoder.decode(together, tokens[::-1].copy(), cu_seqlens=cu),
    )
    for i in range(DECODE_BATCH):
        alone.truncate(0, 0)
        np.testing.assert_array_equal(decoder.decode(alone, [int(tokens[i])])[0], first[i])
        np.testing.assert_array_equal(decoder.decode(alone, [int(tokens[-1 - i])])[0], second[i])


def test_wrong_prompts_are_refused(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir)
    for prompt, message in [
        (3, "expected a text, a list"), ([], "at least one token"), ("", "at least one token"), ([99], "from 0 to 63, got 99"),
        ([3] * 64, "context of 64"), ([{"role": "user", "content": "x"}], "chat template"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=message):
            model.generate(prompt)
    with pytest.raises(ConfigError, match="did you mean 'max_new_tokens'"):
        model.generate("w3", max_tokens=3)
    with pytest.raises(ConfigError, match="temperature"):
        model.generate("w3", temperature=-1.0)


def test_chat_prompt(tiny_model_dir: Path) -> None:
    (tiny_model_dir / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    model = load_model(tiny_model_dir)
    options = {"max_new_tokens": 5, "ignore_eos": True}
    assert model.generate([{"role": "user", "content": "w3 w4"}], **options) == model.generate("w3 w4 ", **options)


def test_folder_without_tokenizer_works_by_ids(tiny_model_dir: Path) -> None:
    (tiny_model_dir / "tokenizer.json").unlink()
    model = load_model(tiny_model_dir)
    assert len(list(generate_ids(model, [3], GenerationConfig(max_new_tokens=3, ignore_eos=True)))) == 3
    with pytest.raises(ValueError, match="tokenizer.json"):
        model.generate("w3")


def test_a_last_answer_is_continued(tiny_model_dir: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}w3 {% else %}w4 {% endif %}{{ m.content }} </s>{% endfor %}"
        "{% if add_generation_prompt %}w4 {% endif %}"
    )
    (tiny_model_dir / "chat_template.jinja").write_text(template)
    model = load_model(tiny_model_dir)
    question = {"role": "user", "content": "w5"}
    assert prompt_ids(model, [question]) == [3, 5, 2, 4]
    assert prompt_ids(model, [question, {"role": "assistant", "content": "w6 w7"}]) == [3, 5, 2, 4, 6, 7]
    with pytest.raises(DataError, match="which is to be continued"):
        prompt_ids(model, [question, {"role": "assistant", "tool_calls": [{}]}])


def test_a_last_answer_of_several_parts_is_continued_behind_its_last_text(tiny_model_dir: Path) -> None:
    template = (
        "{% for m in messages %}w3 {% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        "{{ part.text }} {% endfor %}{% endif %} </s>{% endfor %}"
    )
    (tiny_model_dir / "chat_template.jinja").write_text(template)
    model = load_model(tiny_model_dir)
    parts = [{"type": "text", "text": "w6"}, {"type": "text", "text": "w7 w8"}]
    assert prompt_ids(model, [{"role": "user", "content": "w5"}, {"role": "assistant", "content": parts}]) == [
        3,
        5,
        2,
        3,
        6,
        7,
        8,
    ]
    parts.append({"type": "image"})
    given: list[Any] = []

    def render(messages: Sequence[dict[str, Any]]) -> str:
        given.extend(messages[-1]["content"])
        return "w3 w6 " + given[1]["text"]

    assert render_open(render, [{"role": "assistant", "content": parts}]) == "w3 w6 w7 w8"
    assert [part.get("type") for part in given] == ["text", "text", "image"] and given[::2] == parts[::2]


def test_a_consumer_that_raises_leaves_nothing_locked(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir)
    options = {"max_new_tokens": 9, "ignore_eos": True}
    right = model.generate("w3 w4", **options)
    with pytest.raises(RuntimeError, match="consumer"):
        for _ in model.stream("w3 w4", **options):
            raise RuntimeError("consumer")
    abandoned = model.stream("w3 w4", **options)
    next(abandoned)
    assert model.generate("w3 w4", **options) == right  # another answer is half done
    assert model.generate(["w3 w4"] * 3, **options) == [right] * 3


def test_streamed_pieces_joined_are_the_answer(stories: Path) -> None:
    model = load_model(stories)
    for options in ({}, {"stop_strings": ["girl"]}, {"temperature": 1.5, "seed": 2}, {"stop_strings": ["</s>", "Lily wa"]}):
        text = model.generate("Once upon a time", max_new_tokens=80, **options)
        assert "".join(model.stream("Once upon a time", max_new_tokens=80, **options)) == text
        assert model.generate(["Once upon a time"] * 2, max_new_tokens=80, **options) == [text] * 2
    prompt = model.tokenizer.encode("Once upon a time")
    answer = list(generate_ids(model, prompt, GenerationConfig(max_new_tokens=80)))
    whole = model.tokenizer.decode([*prompt, *answer])
    assert model.tokenizer.decode(prompt) + model.generate("Once upon a time", max_new_tokens=80) == whole


def test_an_answer_is_of_one_adapter(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir, progress=False)
    pieces = model.stream("w3 w4", max_new_tokens=9, ignore_eos=True)
    next(pieces)
    model.add_adapter(r=2)
    with pytest.raises(ConfigError, match="stream: expected the same adapter until the answer ends"):
        list(pieces)
    with pytest.raises(DataError, match="prompt: expected a text, a list of messages or a list of token ids"):
        model.generate([True, False])
