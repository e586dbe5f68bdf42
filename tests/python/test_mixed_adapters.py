"""Sequences of one decode with adapters of their own get the bits that each gets alone with its adapter on the decoder."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf_files import random_blocks

import lora_c as lc
from lora_c import _core
from lora_c._core import Decoder, Parameter

SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "vocab_size": 100, "max_position_embeddings": 128, "norm_eps": 1e-5,
    "rope_inv_freq": [1.0 / (i + 1) for i in range(32)],
}  # fmt: skip
SHAPES = {
    "q_proj": (256, 256), "k_proj": (128, 256), "v_proj": (128, 256), "o_proj": (256, 256), "gate_proj": (512, 256),
    "up_proj": (512, 256), "down_proj": (256, 512),
}  # fmt: skip
ALL = [f"layers.{i}.{name}" for i in range(2) for name in SHAPES]
BASES: dict[str, Callable[[np.ndarray], Any]] = {
    "float32": lambda w: w,
    "bfloat16": lambda w: w.astype(ml_dtypes.bfloat16),
    "NF4": lc.NF4Tensor.quantize,
    "Q8_0": lambda w: lc.GGMLTensor.quantize(w, type="Q8_0"),
    "Q6_K": lambda w: random_blocks("Q6_K", *w.shape, np.random.default_rng(w.size)),
}
Adapter = dict[str, tuple[Parameter, Parameter, float]]
SET_OF = ["a", "c", None, "b", "a", None, "c", "b"]
PROMPTS = [[5, 17, 3], [8], [50, 2], [99, 1], [4], [60, 61, 62], [7, 7], [33, 90]]


def decoder(kind: str = "float32", device: str = "cpu") -> Decoder:
    """The same values each time."""
    rng, made = np.random.default_rng(1), Decoder(**SIZES, tie_word_embeddings=True, device=device)
    made.set_weight("embed_tokens", rng.standard_normal((100, 256), np.float32))
    made.set_weight("norm", np.ones(256, np.float32))
    for layer in range(2):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            made.set_weight(f"layers.{layer}.{norm}", np.ones(256, np.float32))
        for name, shape in SHAPES.items():
            w = rng.standard_normal(shape, np.float32) * np.float32(0.06)
            made.set_weight(f"layers.{layer}.{name}", BASES[kind](w))
    return made


def adapter(seed: int, r: int, names: list[str], device: str = "cpu") -> Adapter:
    rng = np.random.default_rng(seed)

    def part(*shape: int) -> Parameter:
        return Parameter(rng.standard_normal(shape, np.float32) * np.float32(0.1), requires_grad=False, device=device)

    shapes = {name: SHAPES[name.split(".")[-1]] for name in names}
    return {name: (part(r, shapes[name][1]), part(shapes[name][0], r), 0.5 + seed) for name in names}


def three(device: str = "cpu") -> dict[str | None, Adapter]:
    """On all matrices, on some of them, and of an odd rank."""
    some = [name for name in ALL if name.endswith(("q_proj", "down_proj"))]
    return {"a": adapter(0, 16, ALL, device), "b": adapter(1, 3, some, device), "c": adapter(2, 40, ALL[3:], device), None: {}}


def put(d: Decoder, values: Adapter) -> None:
    for name in ALL:
        d.remove_adapter(name)
    for name, (A, B, scale) in values.items():
        d.set_adapter(name, A, B, scale=scale)


def slots(d: Decoder, values: Adapter) -> _core.DecoderAdapters:
    made = d.new_adapters()
    for name, (A, B, scale) in values.items():
        made.set(name, A, B, scale=scale)
    return made


def alone(d: Decoder, adapters: dict[str | None, Adapter], steps: int, precision: Any = None) -> list[list[np.ndarray]]:
    """The logits of each sequence after its prompt and after each of some tokens, one sequence at a time."""
    results = []
    for number, (name, prompt) in enumerate(zip(SET_OF, PROMPTS, strict=True)):
        put(d, adapters[name])
        cache = d.new_cache(16)
        calls = [prompt, *([(7 * number + step) % 100] for step in range(steps))]
        results.append([d.decode(cache, ids, precision=precision)[0] for ids in calls])
    return results


def together(d: Decoder, chosen: list[Any], steps: int, precision: Any = None) -> list[list[np.ndarray]]:
    cache, rng = d.new_cache(16, 8), np.random.default_rng(3)
    results: list[list[np.ndarray]] = [[] for _ in range(8)]
    for step in range(steps + 1):
        order = rng.permutation(8)
        new = [PROMPTS[s] if step == 0 else [(7 * s + step - 1) % 100] for s in order]
        logits = d.decode(
            cache,
            np.concatenate(new).astype(np.int32),
            cu_seqlens=np.cumsum([0, *map(len, new)]),
            sequences=order,
            precision=precision,
            adapters=[chosen[s] for s in order],
        )
        for s, row in zip(order, logits, strict=True):
            results[s].append(row)
    return results


def assert_same(got: list[list[np.ndarray]], want: list[list[np.ndarray]]) -> None:
    for one, other in zip(got, want, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = lc.get_num_threads()
    lc.set_num_threads(request.param)
    yield request.param
    lc.set_num_threads(before)


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("kind", list(BASES))
def test_eight_sequences_with_three_adapters_and_the_base(kind: str, precision: str, threads: int) -> None:
    d, adapters = decoder(kind), three()
    want = alone(d, adapters, 3, precision)
    assert len({row.tobytes() for rows in want for row in rows}) == 32
    sets = {name: slots(d, values) if name else None for name, values in adapters.items()}
    put(d, adapters["b"])  # the decoder's own do not matter
    assert_same(together(d, [sets[name] for name in SET_OF], 3, precision), want)


def test_on_a_device(fake: str) -> None:
    d, adapters = decoder("NF4", fake), three(fake)
    want = alone(d, adapters, 2)
    sets = {name: slots(d, values) if name else None for name, values in adapters.items()}
    assert sets["a"] and sets["a"].device == fake
    assert_same(together(d, [sets[name] for name in SET_OF], 2), want)
    with pytest.raises(ValueError, match="A: expected a Parameter on device"):
        d.new_adapters().set(ALL[0], *adapter(0, 2, ALL[:1])[ALL[0]][:2], scale=1.0)


@pytest.mark.parametrize("name", ["a", "b", "c", None])
def test_a_long_prompt_with_one_adapter(name: str | None) -> None:
    d, adapters = decoder("NF4"), three()
    ids, cu = np.arange(70) % 100, [0, 30, 70]
    put(d, adapters[name])
    want = d.decode(d.new_cache(64, 2), ids, cu_seqlens=cu)
    put(d, adapters["a" if name != "a" else "b"])
    chosen = slots(d, adapters[name]) if name else None
    np.testing.assert_array_equal(d.decode(d.new_cache(64, 2), ids, cu_seqlens=cu, adapters=[chosen] * 2), want)
    np.testing.assert_array_equal(d.decode(d.new_cache(64, 2), ids, cu_seqlens=cu, adapters=iter([chosen] * 2)), want)


def test_an_adapter_that_is_replaced_removed_or_written() -> None:
    d, name = decoder(), ALL[2]
    first, second = adapter(0, 4, [name]), adapter(1, 8, [name])

    def logits(values: Adapter) -> np.ndarray:
        put(d, values)
        return d.decode(d.new_cache(8), [3, 4])

    def of(chosen: _core.DecoderAdapters | None) -> np.ndarray:
        return d.decode(d.new_cache(8, 2), [3, 4, 3, 4], cu_seqlens=[0, 2, 4], adapters=[chosen, None])[:1]

    made = slots(d, first)
    assert repr(made) == "DecoderAdapters(1 of 14 matrices)"
    np.testing.assert_array_equal(of(made), logits(first))
    made.set(name, *second[name][:2], scale=second[name][2])
    np.testing.assert_array_equal(of(made), logits(second))
    second[name][0].data *= 2
    np.testing.assert_array_equal(of(made), logits(second))
    made.remove(name)
    made.remove(name)
    assert repr(made) == "DecoderAdapters(0 of 14 matrices)"
    np.testing.assert_array_equal(of(made), logits({}))


def test_rows_of_a_shared_b() -> None:
    d = decoder()
    rng = np.random.default_rng(5)
    A, B = Parameter(rng.standard_normal((4, 256), np.float32)), Parameter(rng.standard_normal((512, 4), np.float32))
    for name, row in (("q_proj", 0), ("k_proj", 256), ("v_proj", 384)):
        d.set_adapter(f"layers.0.{name}", A, B, scale=0.1, row=row)
    want = d.decode(d.new_cache(8), [3, 4])
    made = d.new_adapters()
    for name, row in (("q_proj", 0), ("k_proj", 256), ("v_proj", 384)):
        made.set(f"layers.0.{name}", A, B, scale=0.1, row=row)
    put(d, {})
    cache = d.new_cache(8, 2)
    np.testing.assert_array_equal(d.decode(cache, [3, 4, 9], cu_seqlens=[0, 2, 3], adapters=[made, None])[:1], want)
    with pytest.raises(ValueError, match=r"A, B: expected shapes \(r, 256\) and \(row \+ 128, r\)"):
        made.set("layers.0.v_proj", A, B, scale=0.1, row=385)


# -- what is refused ---------------------------------------------------------------------------------------------------------


def test_adapters_that_do_not_fit_are_refused() -> None:
    d, other = decoder(), decoder()
    made = d.new_adapters()
    A, B, _ = adapter(0, 4, ALL[:1])[ALL[0]]
    for args, message in (
        (("layers.2.q_proj", A, B), "name: expected"),
        (("layers.0.q_proj.bias", A, B), "name: expected a projection"),
        (("layers.0.q_proj", B, B), "A, B: expected shapes"),
        (("layers.0.q_proj", B, A), "A, B: expected shapes"),
        (("layers.0.down_proj", A, B), "A, B: expected shapes"),
        (("embed_tokens", A, Parameter(np.ones((100, 4), np.float32))), "embed_tokens: expected a matrix of a layer"),
    ):
        with pytest.raises(ValueError, match=message):
            made.set(*args, scale=1.0)
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scale: expected a finite number"):
            made.set("layers.0.q_proj", A, B, scale=scale)
    with pytest.raises(ValueError, match="scale: expected"):
        made.set("layers.0.q_proj", A, B)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        made.set("layers.0.q_proj", np.ones((4, 256), np.float32), B, scale=1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected decoder.new_adapters"):
        _core.DecoderAdapters()
    with pytest.raises(ValueError, match="adapters: expected those of this decoder, got those of another at index 1"):
        d.decode(d.new_cache(8, 2), [1, 2], cu_seqlens=[0, 1, 2], adapters=[made, other.new_adapters()])


def test_calls_that_do_not_fit_leave_no_trace() -> None:
    d = decoder()
    made, cache = slots(d, adapter(0, 4, ALL[:1])), d.new_cache(64, 32)
    for chosen, error, message in (
        ([made], ValueError, "adapters: expected 2, one for each segment, got 1"),
        ([made, "a"], TypeError, "adapters: expected a list of DecoderAdapters or None, one for each segment, got 'a'"),
        (made, TypeError, "adapters: expected a list"),
        ([made, None], ValueError, "adapters: expected at most 16 tokens in a call with several, got 17"),
    ):
        with pytest.raises(error, match=message):
            d.decode(cache, list(range(17)), cu_seqlens=[0, 5, 17], adapters=chosen)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="adapters: expected at most 16 different ones in a call, got more"):
        d.decode(cache, list(range(17)), cu_seqlens=list(range(18)), adapters=[d.new_adapters() for _ in range(17)])
    assert not any(cache.length(s) for s in range(32))
    d.decode(cache, list(range(16)), cu_seqlens=list(range(17)), adapters=[d.new_adapters() for _ in range(15)] + [made])
    assert [cache.length(s) for s in range(32)] == [1] * 16 + [0] * 16


def test_what_a_set_cannot_stand_in_for() -> None:
    d = decoder()
    A, B = Parameter(np.ones((2, 256), np.float32)), Parameter(np.ones((100, 2), np.float32))
    for name in ("embed_tokens", "lm_head"):
        d.set_adapter(name, A, B, scale=1.0)
        with pytest.raises(ValueError, match=f"adapters: expected a decoder without an adapter on {name}"):
            d.decode(d.new_cache(8), [1], adapters=[None])
        d.remove_adapter(name)
    d.set_weight("embed_tokens", Parameter(np.ones((100, 256), np.float32)))
    d.set_token_rows([3], Parameter(np.ones((1, 256), np.float32)))
    with pytest.raises(ValueError, match="adapters: expected a decoder without trained token rows.*got 1"):
        d.decode(d.new_cache(8), [1], adapters=[None])
    d.set_token_rows(None, None)
    d.decode(d.new_cache(8), [1], adapters=[None])


def test_a_dora_adapter_of_the_decoder_is_left_aside() -> None:
    d = decoder()
    want = d.decode(d.new_cache(8), [5, 6])
    A, B, _ = adapter(0, 4, ALL[:1])[ALL[0]]
    d.set_adapter(ALL[0], A, B, scale=1.0, magnitude=Parameter(np.ones(256, np.float32)))
    own = d.decode(d.new_cache(8), [5, 6])
    assert not np.array_equal(own, want)
    np.testing.assert_array_equal(d.decode(d.new_cache(8), [5, 6], adapters=[None]), want)
    np.testing.assert_array_equal(d.decode(d.new_cache(8), [5, 6]), own)


# -- lives and threads -------------------------------------------------------------------------------------------------------


def test_lives() -> None:
    d = decoder()
    values = adapter(0, 4, ALL)
    put(d, values)
    want = d.decode(d.new_cache(8), [5, 6])
    put(d, {})
    made = slots(d, values)
    del values
    gc.collect()  # the Parameters live in the set alone
    np.testing.assert_array_equal(d.decode(d.new_cache(8), [5, 6], adapters=[made]), want)
    del d
    gc.collect()  # the set holds its decoder
    made.set(ALL[0], *adapter(1, 4, ALL[:1])[ALL[0]][:2], scale=1.0)
    with pytest.raises(TypeError, match="weak"):
        weakref.ref(made)
    before = _core.memory_report()["total"]["live"]
    del made
    gc.collect()
    assert _core.memory_report()["total"]["live"] < before


def test_lists_that_lose_their_sets_during_the_call() -> None:
    d, adapters = decoder(), three()
    want = alone(d, adapters, 0)
    for _ in range(20):
        chosen: list[Any] = [slots(d, adapters[name]) if name else None for name in SET_OF]
        thread = threading.Thread(target=chosen.clear)
        cache, ids = d.new_cache(16, 8), np.concatenate(PROMPTS)

        def items(chosen: list[Any] = chosen, thread: threading.Thread = thread) -> Iterator[Any]:
            yield from list(chosen)
            thread.start()

        logits = d.decode(cache, ids, cu_seqlens=np.cumsum([0, *map(len, PROMPTS)]), adapters=items())
        thread.join()
        assert_same([[row] for row in logits], want)


def test_setting_while_another_thread_decodes_is_refused() -> None:
    d, values = decoder(), adapter(0, 16, ALL)
    made, unused, stop = slots(d, values), d.new_adapters(), threading.Event()
    cache, refused = d.new_cache(128, 2), []

    def decode() -> None:
        while not stop.is_set():
            cache.truncate(0, 0)
            cache.truncate(1, 0)
            d.decode(cache, list(range(12)), cu_seqlens=[0, 6, 12], adapters=[made, None])

    thread = threading.Thread(target=decode)
    thread.start()
    A, B, scale = values[ALL[0]]
    for _ in range(3000):
        unused.set(ALL[0], A, B, scale=scale)  # is in nobody's way
        try:
            made.set(ALL[0], A, B, scale=scale)
        except RuntimeError as error:
            refused.append(str(error))
        if len(refused) > 2:
            break
        stop.wait(0.0005)
    stop.set()
    thread.join()
    assert refused and all("DecoderAdapters: in use by another thread" in line for line in refused)
    made.set(ALL[0], A, B, scale=scale)
