"""Prompts that are read in blocks, which sequences copy from each other: the same bits as alone, with and without a copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_batch import with_adapters

import lora_c as lc
from lora_c._core import DECODE_BATCH
from lora_c.errors import ConfigError

LONG: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos": True}
SYSTEM = [3 + (7 * i) % 50 for i in range(37)]  # two blocks of 16 and a rest
TAILS = ([5], [9, 4], [8, 8, 8], [40, 3], [17])


@pytest.fixture
def model(tiny_model_dir: Path) -> lc.Model:
    return lc.load_model(tiny_model_dir, progress=False)


def answered_alone(model: lc.Model, prompt: list[int], adapter: str | None, **options: Any) -> lc.generation.answer.Answer:
    batch = lc.Batch(model, n_sequences=1, prompt_block=16)
    answer = batch.add(prompt, adapter=adapter, top_logprobs=2, **LONG, **options)
    batch.run()
    assert answer.n_reused == 0
    return answer


def said(answer: Any) -> tuple[Any, ...]:
    return answer.ids, answer.logprobs


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_copied_blocks_change_no_bit(tiny_model_dir: Path, quantize: Any, precision: str) -> None:
    model = with_adapters(lc.load_model(tiny_model_dir, quantize, progress=False), "a", "b")
    asked = [(SYSTEM + tail, adapter) for adapter in ("a", None, "b") for tail in TAILS]
    expected = [said(answered_alone(model, *one, precision=precision)) for one in asked]
    batch = lc.Batch(model, n_sequences=6, prompt_block=16)
    answers = [batch.add(prompt, adapter=name, precision=precision, top_logprobs=2, **LONG) for prompt, name in asked]
    batch.run()
    assert [said(answer) for answer in answers] == expected
    assert [answer.n_reused for answer in answers] == [0, 32, 32, 32, 32] * 3  # the first of each adapter reads


def test_the_one_sequence_that_is_free_gives_what_it_holds(model: lc.Model) -> None:
    batch = lc.Batch(model, n_sequences=1, prompt_block=8)
    reused = []
    for prompt in (SYSTEM, SYSTEM, SYSTEM[:20] + [5], SYSTEM, SYSTEM[:16], [9, *SYSTEM]):
        answer = batch.add(prompt, **LONG)
        batch.run()
        reused.append(answer.n_reused)
        other = lc.Batch(model, n_sequences=1, prompt_block=8)
        alone = other.add(prompt, **LONG)
        other.run()
        assert answer.ids == alone.ids
    assert reused == [0, 32, 16, 16, 8, 0]  # of a prompt of whole blocks the last one is read: its logits are needed


def test_a_long_prompt_does_not_hold_up_the_others(model: lc.Model) -> None:
    batch = lc.Batch(model, prompt_block=8)
    first = batch.add([5, 6], **LONG)
    batch.step()
    long = batch.add(SYSTEM, **LONG)
    counts = []
    for _ in range(6):
        batch.step()
        counts.append((len(first.ids), len(long.ids)))
    assert counts == [(2, 0), (3, 0), (4, 0), (5, 0), (6, 1), (7, 2)]
    assert long.ids == answered_alone_in(model, SYSTEM, 8)[:2]


def answered_alone_in(model: lc.Model, prompt: list[int], block: int) -> list[int]:
    batch = lc.Batch(model, n_sequences=1, prompt_block=block)
    answer = batch.add(prompt, **LONG)
    batch.run()
    return answer.ids


def test_one_that_leaves_while_it_is_read_leaves_what_it_has_read(model: lc.Model) -> None:
    batch = lc.Batch(model, n_sequences=2, prompt_block=8)
    gone = batch.add(SYSTEM, **LONG)
    batch.step()
    batch.step()
    batch.remove(gone)
    answer = batch.add(SYSTEM, **LONG)
    batch.run()
    assert not gone.ids and answer.n_reused == 16 and answer.ids == answered_alone_in(model, SYSTEM, 8)


def test_what_another_adapter_read_is_not_taken_and_no_adapter_is_kept_by_it(model: lc.Model) -> None:
    import weakref

    model = with_adapters(model, "a", "b", lora_dropout=0.0)
    batch = lc.Batch(model, prompt_block=8)
    for name in ("a", "b"):
        answer = batch.add(SYSTEM, adapter=name, **LONG)
        batch.run()
        assert answer.n_reused == 0
    gone = weakref.ref(model.adapter_set["b"])
    del answer
    model.delete_adapter("b")
    batch.step()
    assert gone() is None
    model.add_adapter(lc.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, seed=9), "b")
    answer = batch.add(SYSTEM, adapter="b", **LONG)
    batch.run()
    assert answer.n_reused == 0


def test_an_exception_in_the_middle_of_reading_is_made_good(model: lc.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answered_alone_in(model, SYSTEM, 8)
    batch = lc.Batch(model, prompt_block=8)
    answer = batch.add(SYSTEM, **LONG)
    calls, decode = [], type(batch._sequences)._call

    def broken(*args: Any) -> Any:
        calls.append(args)
        logits = decode(*args)
        if len(calls) in (2, 5):  # after the second block, and after the last
            raise KeyboardInterrupt
        return logits

    monkeypatch.setattr(type(batch._sequences), "_call", broken)
    for _ in range(7):
        try:
            batch.step()
        except KeyboardInterrupt:
            calls.append("broken")
    batch.run()
    assert calls.count("broken") == 2 and answer.ids == expected


def test_a_sequence_that_is_copied_goes_on_with_the_same_bits(model: lc.Model) -> None:
    cache = model.decoder.new_cache(48, 3)
    first = model.decoder.decode(cache, SYSTEM, sequences=[1])
    cache.copy(1, 0, len(SYSTEM))
    cache.copy(1, 1, len(SYSTEM))
    both = model.decoder.decode(cache, [7, 7], cu_seqlens=[0, 1, 2], sequences=[0, 1])
    assert np.array_equal(both[0], both[1]) and not np.array_equal(first[0], both[0])
    cache.copy(1, 0, 5)
    assert [cache.length(i) for i in range(3)] == [5, len(SYSTEM) + 1, 0]
    cache.copy(1, 0, 0)
    assert cache.length(0) == 0
    for wrong in ((0, 1, 1), (1, 3, 1), (3, 0, 1), (1, 0, 99), (1, 0, -1), (-1, 0, 0)):
        with pytest.raises(ValueError, match="expected"):
            cache.copy(*wrong)
    assert [cache.length(i) for i in range(3)] == [0, len(SYSTEM) + 1, 0]


def test_log_probabilities_are_those_of_the_logits(model: lc.Model) -> None:
    answer = answered_alone(model, [5, 6, 7], None)
    logits = model.logits([5, 6, 7, *answer.ids])[2:].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert answer.logprobs is not None and len(answer.logprobs) == len(answer.ids) == 8
    for row, token, found in zip(expected, answer.ids, answer.logprobs, strict=False):
        assert found.id == token and abs(found.logprob - row[token]) < 0.05 and len(found.top) == 2
        assert found.top[0] == (token, found.logprob) and found.top[0][1] >= found.top[1][1]  # it is greedy


def test_an_answer_says_why_it_ended(model: lc.Model) -> None:
    batch = lc.Batch(model)
    long = batch.add([5, 6], max_new_tokens=3, ignore_eos=True)
    batch.run()
    assert long.finish_reason == "length" and long.logprobs is None
    text = long.text.split()[1]
    stopped = batch.add([5, 6], max_new_tokens=3, ignore_eos=True, stop_strings=[text])
    gone = batch.add([5, 6], max_new_tokens=3, ignore_eos=True)
    batch.step()
    batch.remove(gone)
    batch.run()
    assert stopped.finish_reason == "stop" and gone.finish_reason is None
    end = batch.add([5, 6], max_new_tokens=3, forced_eos_token_id=sorted(model.eos_token_ids)[0])
    batch.run()
    assert end.finish_reason == "stop" and len(end.ids) == 2


@pytest.mark.parametrize("options", [{"prompt_block": 0}, {"prompt_block": "8"}])
def test_a_block_has_tokens(model: lc.Model, options: Any) -> None:
    with pytest.raises(ConfigError, match="prompt_block: expected 1 or more tokens"):
        lc.Batch(model, **options)
    with pytest.raises(ConfigError, match="top_logprobs: expected 0 or more"):
        lc.Batch(model).add([5], top_logprobs=-1)
    assert DECODE_BATCH == 16
