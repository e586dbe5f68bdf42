"""Prompts that join and leave a batch, each with an adapter of its own, and each answered as alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_values import write_values
from test_families import GOLDEN, folder, golden

import lora_c as lc
from lora_c._core import DECODE_BATCH
from lora_c.errors import AdapterError, ConfigError, DataError
from lora_c.generation.answer import Writer
from lora_c.generation.answers import generate_ids

PROMPTS = ("w3 w4", "w5", "w6 w7 w8", "w9 w3", "w4 w4 w4 w4", "w8 w5", "w3", "w7 w6")
LONG: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
ALL = "all-linear"


@pytest.fixture
def model(tiny_model_dir: Path) -> lc.Model:
    return lc.load_model(tiny_model_dir, progress=False)


def with_adapters(model: lc.Model, *names: str, **options: Any) -> lc.Model:
    """The model with random adapters of these names, the first of them in use."""
    for seed, name in enumerate(names):
        config = lc.LoraConfig(r=3 + seed, lora_alpha=24, target_modules=ALL, init_lora_weights=False, seed=seed, **options)
        model.add_adapter(config, name)
    model.set_adapter(names[0])
    return model


def alone(model: lc.Model, prompt: str, adapter: str | None, **options: Any) -> str:
    before = model.active_adapter
    model.set_adapter(adapter)
    try:
        return model.generate(prompt, **LONG, **options)
    finally:
        model.set_adapter(before)


def test_answers_are_those_of_generate_whenever_they_join(model: lc.Model) -> None:
    expected = [model.generate(prompt, **LONG) for prompt in PROMPTS]
    batch = lc.Batch(model, n_sequences=3)
    answers = [batch.add(prompt, **LONG) for prompt in PROMPTS[:2]]
    assert len(batch) == 2 and not any(answer.ids for answer in answers)
    ended = batch.step() + batch.step()
    assert not ended and [len(answer.ids) for answer in answers] == [2, 2]
    answers += [batch.add(prompt, **LONG) for prompt in PROMPTS[2:]]
    ended = batch.run()
    assert [answer.text for answer in answers] == expected
    assert sorted(map(id, ended)) == sorted(map(id, answers)) and all(answer.finished for answer in answers)
    assert not batch and len(batch) == 0 and batch.step() == []


def test_each_step_is_one_token_of_each_that_is_under_way(model: lc.Model) -> None:
    batch = lc.Batch(model, n_sequences=2)
    answers = [batch.add(prompt, max_new_tokens=n, ignore_eos=True) for prompt, n in zip(PROMPTS, (1, 3, 2), strict=False)]
    counts = []
    while batch:
        batch.step()
        counts.append([len(answer.ids) for answer in answers])
    assert counts == [[1, 1, 1], [1, 2, 2], [1, 3, 2]]  # the first has ended at once, and the third taken its place


def test_the_text_of_an_answer_can_be_taken_piece_by_piece(model: lc.Model) -> None:
    batch = lc.Batch(model)
    answer, pieces = batch.add(PROMPTS[0], **LONG), []
    while batch:
        batch.step()
        pieces.append(answer.take())
    assert len(pieces) == 12 and "".join(pieces) == answer.text == model.generate(PROMPTS[0], **LONG)
    assert answer.take() == ""


def test_draws_are_those_of_each_answer_alone(model: lc.Model) -> None:
    options = {"temperature": 1.5, "seed": 4}
    batch = lc.Batch(model)
    drawn = [batch.add(PROMPTS[0], **LONG, **options, repetition=i) for i in range(3)]
    greedy = batch.add(PROMPTS[0], **LONG)
    batch.run()
    assert [answer.text for answer in drawn] == model.generate(PROMPTS[0], **LONG, **options, num_return_sequences=3)
    assert greedy.text == model.generate(PROMPTS[0], **LONG) != drawn[0].text


def test_one_that_leaves_makes_room_and_disturbs_nobody(model: lc.Model) -> None:
    batch = lc.Batch(model, n_sequences=2)
    first, second, third = (batch.add(prompt, **LONG) for prompt in PROMPTS[:3])
    batch.step()
    batch.remove(first)
    assert first.finished and len(first.ids) == 1 and not third.ids
    batch.step()
    assert len(third.ids) == 1
    late = batch.add(PROMPTS[3], **LONG)
    batch.remove(late)
    batch.remove(late)
    batch.run()
    assert [second.text, third.text] == [model.generate(prompt, **LONG) for prompt in PROMPTS[1:3]]
    assert late.finished and not late.ids and late.text == ""


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_adapters_side_by_side(tiny_model_dir: Path, precision: str, quantize: Any) -> None:
    model = with_adapters(lc.load_model(tiny_model_dir, quantize, progress=False), "a", "b", "c", lora_dropout=0.1)
    names = ["a", None, "b", "c", "b", None, "a", "c"]
    expected = [alone(model, prompt, name, precision=precision) for prompt, name in zip(PROMPTS, names, strict=True)]
    assert len({alone(model, PROMPTS[0], name) for name in ("a", "b", "c", None)}) == 4
    calls = count_calls(model)
    batch = lc.Batch(model)
    answers = [
        batch.add(prompt, adapter=name, precision=precision, **LONG) for prompt, name in zip(PROMPTS, names, strict=True)
    ]
    batch.run()
    assert [answer.text for answer in answers] == expected
    assert calls.count(8) == 11 and len(calls) == 11 + 8  # all that have begun take a step in one call
    assert model.active_adapter == "a" and model.generate(PROMPTS[0], **LONG, precision=precision) == expected[0]


class CountedDecoder:
    """A decoder that notes how many sequences each call has."""

    def __init__(self, decoder: Any) -> None:
        self.decoder, self.calls = decoder, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def decode(self, cache: Any, ids: Any, **options: Any) -> Any:
        self.calls.append(len(options["sequences"]))
        return self.decoder.decode(cache, ids, **options)


def count_calls(model: lc.Model) -> list[int]:
    counted = CountedDecoder(model.decoder)
    model.decoder = counted  # type: ignore[assignment]
    return counted.calls


@pytest.mark.parametrize("change", [
    {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [3, 4]},
    {"target_modules": ["q_proj", "lm_head"]}, {"init_lora_weights": "pissa"},
])  # fmt: skip
def test_adapters_that_cannot_share_a_call_have_their_own(model: lc.Model, change: dict[str, Any]) -> None:
    with_adapters(model, "a", "b")
    model.add_adapter(lc.LoraConfig(**{"r": 2, "lora_alpha": 40, "target_modules": ALL} | change), "other")
    generator = np.random.default_rng(1)
    for parameter in model.trainable_parameters():  # a fresh adapter changes nothing
        write_values(parameter, parameter.data + generator.normal(0, 0.05, parameter.shape).astype(np.float32))
    names = ["other", "a", None, "b", "other"]
    expected = [alone(model, prompt, name) for prompt, name in zip(PROMPTS, names, strict=False)]
    for in_use in ("other", "a", None):
        model.set_adapter(in_use)
        calls = count_calls(model)
        batch = lc.Batch(model)
        answers = [batch.add(prompt, adapter=name, **LONG) for prompt, name in zip(PROMPTS, names, strict=False)]
        batch.run()
        assert [answer.text for answer in answers] == expected, in_use
        assert calls.count(3) == calls.count(2) == 11
        assert model.active_adapter == in_use
        model.decoder = model.decoder.decoder  # type: ignore[attr-defined]


def test_without_a_name_an_answer_has_the_adapter_that_was_in_use(model: lc.Model) -> None:
    with_adapters(model, "a", "b")
    batch = lc.Batch(model)
    first = batch.add(PROMPTS[0], **LONG)
    model.set_adapter("b")
    second = batch.add(PROMPTS[0], **LONG)
    batch.step()
    model.set_adapter(None)
    batch.run()
    assert (first.adapter, second.adapter) == ("a", "b")
    assert [first.text, second.text] == [alone(model, PROMPTS[0], name) for name in ("a", "b")]


def test_an_adapter_that_has_gone_ends_no_other_answer(model: lc.Model) -> None:
    with_adapters(model, "a", "b")
    batch = lc.Batch(model)
    gone, kept = batch.add(PROMPTS[0], adapter="b", **LONG), batch.add(PROMPTS[1], adapter="a", **LONG)
    batch.step()
    model.delete_adapter("b")
    model.add_adapter(r=2, name="b")
    waiting = batch.add(PROMPTS[2], adapter="b", **LONG)
    assert batch.step() == [gone]
    assert gone.finished and len(gone.ids) == 1 and isinstance(gone.error, AdapterError)
    assert "adapter: expected the adapter 'b' as it was until the answer ends" in str(gone.error)
    batch.run()
    assert waiting.error is None and waiting.text == alone(model, PROMPTS[2], "b")
    assert kept.text == alone(model, PROMPTS[1], "a")


def test_a_merged_adapter_is_the_only_one(model: lc.Model) -> None:
    with_adapters(model, "a", "b")
    batch = lc.Batch(model)
    begun = batch.add(PROMPTS[0], **LONG)
    batch.step()
    model.merge_adapter()
    assert batch.step() == [begun] and "got other weights" in str(begun.error) and not batch
    for name in ("b", None):
        with pytest.raises(AdapterError, match="adapter: expected a model that is not merged, got one with 'a'"):
            batch.add(PROMPTS[0], adapter=name)
    answer = batch.add(PROMPTS[0], adapter="a", **LONG)
    batch.run()
    assert answer.text == model.generate(PROMPTS[0], **LONG)


def test_mistakes_are_refused_where_they_are_made(model: lc.Model) -> None:
    for n in (0, DECODE_BATCH + 1):
        with pytest.raises(ConfigError, match=f"n_sequences: expected 1 to {DECODE_BATCH}, got {n}"):
            lc.Batch(model, n)
    with pytest.raises(ConfigError, match="max_tokens: expected 1 to the model's context"):
        lc.Batch(model, max_tokens=10**6)
    batch = lc.Batch(model, max_tokens=10)
    with pytest.raises(ConfigError, match="max_tokens: expected at least the 14 tokens .* got 10; give Batch a larger"):
        batch.add([3, 4], max_new_tokens=12)
    with pytest.raises(AdapterError, match=r"adapter: expected one of the model's adapters \(none\), got 'a'"):
        batch.add([3, 4], adapter="a", max_new_tokens=2)
    with pytest.raises(DataError, match="prompt: expected at least one token"):
        batch.add([], max_new_tokens=2)
    with pytest.raises(ConfigError, match="max_new_token"):
        batch.add([3, 4], max_new_token=2)
    with pytest.raises(ConfigError, match="num_return_sequences: expected 1 for one answer, got 2"):
        batch.add([3, 4], num_return_sequences=2, temperature=1.0, max_new_tokens=2)
    with pytest.raises(ConfigError, match="model: expected a Model, got str"):
        lc.Batch("demo")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="answer: expected what add returned, got str"):
        batch.remove("x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="answer: expected one of this batch, got one of another"):
        batch.remove(lc.Batch(model).add([3, 4], max_new_tokens=2))
    assert not batch and repr(batch) == "Batch(0 under way, 0 waiting, max_tokens=10)"


def test_an_answer_that_fails_ends_alone(model: lc.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = lc.Batch(model)
    bad, good = (batch.add(prompt, **LONG) for prompt in PROMPTS[:2])
    batch.step()
    real = Writer.advance

    def advance(writer: Writer, logits: np.ndarray) -> None:
        real(writer, np.full_like(logits, np.nan) if writer.answer is bad else logits)

    monkeypatch.setattr(Writer, "advance", advance)
    assert batch.step() == [bad]
    assert bad.finished and bad.error is not None and "got NaN or infinity" in str(bad.error) and "failed" in repr(bad)
    batch.run()
    assert good.error is None and good.text == model.generate(PROMPTS[1], **LONG)


class BrokenDecoder(CountedDecoder):
    """A decoder whose n-th call is broken off, before it has begun or after it has done its work."""

    def __init__(self, decoder: Any, n: int, after: bool) -> None:
        super().__init__(decoder)
        self.n, self.after = n, after

    def decode(self, cache: Any, ids: Any, **options: Any) -> Any:
        is_broken = len(self.calls) + 1 == self.n
        if is_broken and not self.after:
            self.calls.append(0)
            raise KeyboardInterrupt
        logits = super().decode(cache, ids, **options)
        if is_broken:
            raise KeyboardInterrupt
        return logits


@pytest.mark.parametrize("names", [("a", "a"), ("a", "b"), ("dora", "a")])
@pytest.mark.parametrize("after", [False, True])
def test_a_step_that_was_broken_off_can_be_taken_again(model: lc.Model, names: tuple[str, str], after: bool) -> None:
    with_adapters(model, "a", "b")
    model.add_adapter(lc.LoraConfig(r=2, use_dora=True, target_modules=ALL, init_lora_weights=False), "dora")
    expected = [alone(model, prompt, name) for prompt, name in zip(PROMPTS, names, strict=False)]
    model.set_adapter("b")
    for n in range(1, 9):
        real = model.decoder
        model.decoder = BrokenDecoder(real, n, after)  # type: ignore[assignment]
        batch = lc.Batch(model)
        answers = [batch.add(prompt, adapter=name, **LONG) for prompt, name in zip(PROMPTS, names, strict=False)]
        with pytest.raises(KeyboardInterrupt):
            batch.run()
        batch.run()
        model.decoder = real
        assert [answer.text for answer in answers] == expected, n
        assert model.active_adapter == "b"


@pytest.mark.parametrize("family", sorted(path.stem for path in GOLDEN.glob("*.npz")))
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_adapters_side_by_side_in_every_family(tmp_path: Path, family: str, quantize: Any) -> None:
    record = golden(family)
    model = with_adapters(lc.load_model(folder(record, tmp_path / "model"), quantize, progress=False), "a", "b")
    model.add_adapter(lc.LoraConfig(r=2, use_dora=True, init_lora_weights=False, target_modules=ALL), "dora")
    ids = [int(i) for i in record["ids"].reshape(-1)]
    n = min(40, model.context_length - 12)
    prompts = [ids[:9], ids[: min(len(ids), n - 3)], ids[2:5], ids[1:8], ids[:1]]
    names = ["b", "a", None, "dora", "b"]
    options: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos": True}
    expected = []
    for prompt, name in zip(prompts, names, strict=True):
        model.set_adapter(name)
        expected.append(list(generate_ids(model, prompt, lc.GenerationConfig(**options))))
    model.set_adapter("dora")
    batch = lc.Batch(model)
    answers = [batch.add(prompt, adapter=name, **options) for prompt, name in zip(prompts, names, strict=True)]
    batch.run()
    assert [answer.ids for answer in answers] == expected


@pytest.mark.parametrize("after", [False, True])
def test_an_answer_that_has_ended_in_a_broken_step_is_not_written_on(model: lc.Model, after: bool) -> None:
    options = [{"max_new_tokens": 3, "precision": "exact"}, {"max_new_tokens": 6, "precision": "fast"}, {"max_new_tokens": 1}]
    expected = [model.generate(prompt, ignore_eos=True, **own) for prompt, own in zip(PROMPTS, options, strict=False)]
    n_broken = 0
    for n in range(1, 14):
        real = model.decoder
        model.decoder = BrokenDecoder(real, n, after)  # type: ignore[assignment]
        batch = lc.Batch(model)
        answers = [batch.add(prompt, ignore_eos=True, **own) for prompt, own in zip(PROMPTS, options, strict=False)]
        returned: list[lc.Answer] = []
        while batch:
            try:
                returned += batch.step()
            except KeyboardInterrupt:
                n_broken += 1
        model.decoder = real
        assert [answer.text for answer in answers] == expected, n
        assert sorted(map(id, returned)) == sorted(map(id, answers)), n
    assert n_broken >= 8


def test_an_answer_whose_choice_was_broken_off_says_so(model: lc.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = lc.Batch(model)
    first, second = (batch.add(prompt, **LONG) for prompt in PROMPTS[:2])
    batch.step()
    with monkeypatch.context() as patch:
        patch.setattr("lora_c.generation.choosing.choose_token", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            batch.step()
    assert (
        first.finished and str(first.error) == "answer: expected its token to be chosen, got MemoryError; add the prompt again"
    )
    batch.run()
    assert second.error is None and second.text == model.generate(PROMPTS[1], **LONG)


def test_an_adapter_that_was_not_made_ready_is_made_again(model: lc.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with_adapters(model, "a", "b")
    expected = [alone(model, prompt, name) for prompt, name in zip(PROMPTS, "ab", strict=False)]
    real, calls = type(model.parts).fill_slots, []

    def fill(*given: Any, **options: Any) -> None:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*given, **options)

    monkeypatch.setattr(type(model.parts), "fill_slots", fill)
    batch = lc.Batch(model)
    answers = [batch.add(prompt, adapter=name, **LONG) for prompt, name in zip(PROMPTS, "ab", strict=False)]
    with pytest.raises(KeyboardInterrupt):
        batch.run()
    batch.run()
    assert [answer.text for answer in answers] == expected


def test_the_adapter_in_use_is_what_it_was_after_a_broken_exchange(model: lc.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with_adapters(model, "a", "b")
    model.add_adapter(lc.LoraConfig(r=2, use_dora=True, target_modules=ALL, init_lora_weights=False), "dora")
    model.set_adapter("b")
    expected = {name: alone(model, PROMPTS[0], name) for name in ("b", "dora")}
    for method in ("set_adapter", "remove_adapter"):
        real, calls = getattr(type(model.parts), method), []

        def broken(*given: Any, real: Any = real, calls: list[Any] = calls, **options: Any) -> None:
            calls.append(given)
            if len(calls) == 3:
                raise KeyboardInterrupt
            real(*given, **options)

        batch = lc.Batch(model)
        answer = batch.add(PROMPTS[0], adapter="dora", **LONG)
        with monkeypatch.context() as patch:
            patch.setattr(type(model.parts), method, broken)
            with pytest.raises(KeyboardInterrupt):
                batch.step()
        assert model.active_adapter == "b" and model.generate(PROMPTS[0], **LONG) == expected["b"]
        batch.run()
        assert answer.text == expected["dora"]


def test_one_batch_is_of_one_thread(model: lc.Model) -> None:
    with_adapters(model, "a")
    entered, go_on = threading.Event(), threading.Event()

    class Slow(CountedDecoder):
        def decode(self, cache: Any, ids: Any, **options: Any) -> Any:
            entered.set()
            go_on.wait(20)
            return super().decode(cache, ids, **options)

    model.decoder = Slow(model.decoder)  # type: ignore[assignment]
    batch = lc.Batch(model)
    answer = batch.add(PROMPTS[0], **LONG)
    thread = threading.Thread(target=batch.run)
    thread.start()
    assert entered.wait(20)
    with pytest.raises(RuntimeError, match="lora_c.Batch: in use by another thread"):
        batch.step()
    other = lc.Batch(model)
    other.add(PROMPTS[1], adapter=None, **LONG)
    with pytest.raises(RuntimeError, match="lora_c.Model: in use by another thread"):
        other.step()
    go_on.set()
    thread.join()
    assert answer.text == model.generate(PROMPTS[0], **LONG) and model.active_adapter == "a"


def test_a_batch_goes_on_after_the_embedding_was_resized(model: lc.Model) -> None:
    batch = lc.Batch(model)
    begun = batch.add([3, 4], **LONG)
    batch.step()
    model.resize_embedding(model.architecture.decoder_kwargs["vocab_size"] + 8)
    fresh = batch.add([3, 4], **LONG)
    assert batch.step() == [begun] and isinstance(begun.error, AdapterError)
    batch.run()
    assert fresh.error is None and fresh.text == model.generate([3, 4], **LONG)
