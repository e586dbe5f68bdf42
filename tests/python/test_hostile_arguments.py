"""Arguments that run Python code, answer something else than they are, or change while they are read."""

from __future__ import annotations

import copy
import ctypes
import gc
import itertools
import mmap
import pickle
import sys
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lora_c as lc
from lora_c import _core, ops
from lora_c._core import AdamW, Decoder, GGMLTensor, NF4Tensor, Parameter

BF16 = np.dtype(ml_dtypes.bfloat16)
SIZES: dict[str, Any] = dict(
    hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
    vocab_size=4, max_position_embeddings=16, norm_eps=1e-5,
)  # fmt: skip


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


class Liar(np.ndarray):
    """Every method that could stand between an array and its memory answers with another, smaller array."""

    def _other(self, *args: Any, **kwargs: Any) -> np.ndarray:
        return np.zeros(1, np.uint16)

    view = astype = copy = ravel = reshape = __array__ = __getitem__ = tobytes = _other  # type: ignore[assignment]
    dtype = property(lambda self: np.dtype(np.uint8))  # type: ignore[assignment]
    shape = property(lambda self: (1,))  # type: ignore[assignment]
    strides = property(lambda self: (1,))  # type: ignore[assignment]
    nbytes = size = ndim = property(lambda self: 1)  # type: ignore[assignment]
    __array_interface__ = property(lambda self: {"shape": (1,), "typestr": "<u2", "data": (8, False), "version": 3})

    def __array_finalize__(self, other: Any) -> None:
        self.made_from = other


def liar(array: np.ndarray) -> Liar:
    return np.ndarray.view(array, Liar)


LIED_TO: dict[str, Callable[[Any], Any]] = {
    "LoRALinear": lambda lie: lc.LoRALinear(lie(ones(6, 8)), r=2).forward(ones(3, 8)),
    "LoRALinear bfloat16": lambda lie: lc.LoRALinear(lie(ones(6, 8).astype(BF16)), r=2).forward(ones(3, 8)),
    "bias bfloat16": lambda lie: lc.LoRALinear(ones(6, 8), r=2, bias=lie(ones(6).astype(BF16))).forward(ones(3, 8)),
    "x": lambda lie: lc.LoRALinear(ones(6, 8), r=2).forward(lie(ones(3, 8))),
    "linear bfloat16": lambda lie: ops.linear(ones(3, 8), lie(ones(6, 8).astype(BF16))),
    "quantize bfloat16": lambda lie: NF4Tensor.quantize(lie(ones(6, 64).astype(BF16))).dequantize(),
    "quantize Q8_0": lambda lie: GGMLTensor.quantize(lie(ones(6, 32).astype(BF16))).dequantize(),
    "ids": lambda lie: ops.embedding(lie(np.arange(4)), ones(4, 8)),
    "positions": lambda lie: ops.rope(ones(3, 1, 4), lie(np.arange(3)), lie(np.ones(2))),
    "embedding": lambda lie: ops.embedding([0, 1], lie(ones(4, 8).astype(BF16))),
    "Parameter": lambda lie: Parameter(lie(ones(3, 4))).data,
}


@pytest.mark.parametrize("name", LIED_TO)
def test_methods_of_a_subclass_are_not_asked_for_memory(name: str) -> None:
    call = LIED_TO[name]
    assert np.array_equal(call(liar), call(lambda array: array))


def test_a_bfloat16_result_is_filled_whatever_its_type_says() -> None:
    out = liar(np.zeros((2, 64), BF16))
    NF4Tensor.quantize(ones(2, 64)).dequantize(dtype="bfloat16", out=out)
    assert np.array_equal(np.ndarray.view(out, np.ndarray).astype(np.float32), ones(2, 64))


class Spy:
    """A number, a truth value, an index: whatever it is converted to, it first runs its action."""

    def __init__(self, action: Callable[[], None], value: Any) -> None:
        self.action, self.value = action, value

    def _convert(self) -> Any:
        self.action()
        return self.value

    __float__ = __index__ = __bool__ = _convert


def use_everything_found() -> None:
    """Calls every method of every object of the extension that the garbage collector knows."""
    for found in gc.get_objects():
        if type(found).__module__ == "lora_c._core":
            for name in dir(type(found)):
                if name == "step" or (name.startswith("__") and name not in ("__repr__", "__sizeof__")):
                    continue  # an optimizer of another test stays as it is
                try:
                    value = getattr(found, name)
                    if callable(value):
                        value()
                except (TypeError, ValueError, RuntimeError, AttributeError):
                    pass


def empty_keywords() -> None:
    """Empties every dict of keyword arguments of these tests, and lets other memory take the place of what was in it."""
    for found in gc.get_objects():
        if type(found) is dict and any(type(value) is Spy for value in found.values()):
            found.clear()
    [bytes(size) for size in range(40, 4000, 40)]


ACTIONS = {"uses half-made objects": use_everything_found, "empties the keywords": empty_keywords}
KEYWORDS: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
    "LoRALinear": lambda spy: lc.LoRALinear(
        base=ones(6, 8).copy(), r=spy(2), A=ones(2, 8).copy(), B=ones(6, 2).copy(), bias=ones(6).copy(), lora_alpha=spy(1.0),
        lora_dropout=spy(0.0), use_rslora=spy(False), use_dora=spy(True), magnitude=ones(6).copy(),
    ).forward(ones(1, 8)),
    "AdamW": lambda spy: AdamW(
        params=[Parameter(ones(3))], lr=spy(0.1), betas=[spy(0.9), spy(0.99)], eps=spy(1e-8), weight_decay=spy(0.0),
        no_decay=[],
    ).step(lr=spy(0.1), grad_scale=spy(1.0), max_grad_norm=spy(1.0)),
    "Decoder": lambda spy: Decoder(
        **SIZES | {k: spy(v) for k, v in SIZES.items()}, norm="r" + "ms", qk_norm="no" + "ne", activation="si" + "lu",
        rope_inv_freq=[spy(1.0), spy(0.5)], rope_scale=spy(1.0), layer_rope=[spy(0)], sliding_window=[spy(2)],
        tie_word_embeddings=spy(True),
    ).config["hidden_size"],
    "from_parts": lambda spy: NF4Tensor.from_parts(
        codes=np.zeros(32, np.uint8), shape=[spy(1), spy(64)], block_size=spy(64), absmax=ones(1).copy(),
        nested_offset=spy(0.0), nested_block_size=spy(256), quant_type="".join(["f", "p4"]), lut=ones(16).copy(),
    ).quant_type,
    "cross_entropy": lambda spy: ops.cross_entropy(
        ones(2, 4), ones(3, 4), [spy(0), spy(1)], ones(2), gradients=spy(True), grad_scale=spy(1.0), logit_scale=spy(1.0)
    )[0],
    "attention": lambda spy: ops.attention(
        ones(2, 2, 8), ones(2, 1, 8), ones(2, 1, 8), [spy(0), spy(2)], scale=spy(1.0), sliding_window=spy(1), softcap=spy(0.0)
    ),
    "rope": lambda spy: ops.rope(ones(2, 1, 4), [spy(0), spy(3)], [spy(1.0), spy(0.5)], scale=spy(1.0)),
    "adamw_step": lambda spy: ops.adamw_step(
        ones(2), ones(2), ones(2), ones(2), step=spy(1), lr=spy(0.1), grad_scale=spy(1.0)
    ),
}  # fmt: skip


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", KEYWORDS)
def test_a_conversion_that(name: str, action: str) -> None:
    make = KEYWORDS[name]
    expected = make(lambda value: value)
    got = make(lambda value: Spy(ACTIONS[action], value))
    assert np.array_equal(got, expected) if not isinstance(got, Spy) else got.value == expected


def test_an_object_is_seen_when_it_is_whole() -> None:
    layer = lc.LoRALinear(ones(4, 4), r=2)
    model = Decoder(**SIZES)
    made = [
        layer,
        layer.A,
        AdamW([layer.A]),
        NF4Tensor.quantize(ones(2, 64)),
        GGMLTensor.quantize(ones(2, 32)),
        model,
        model.new_cache(4),
    ]
    assert all(gc.is_tracked(o) for o in made)


TYPES = [n for n in dir(_core) if isinstance(getattr(_core, n), type) and not issubclass(getattr(_core, n), Exception)]


@pytest.mark.parametrize("name", TYPES)
def test_types_are_made_whole_or_not_at_all(name: str) -> None:
    made = getattr(_core, name)
    with pytest.raises(TypeError):
        made.__new__(made)
    with pytest.raises(TypeError):
        object.__new__(made)
    with pytest.raises(TypeError):
        type("Sub", (made,), {})


@pytest.mark.parametrize(
    "make", [lambda: lc.LoRALinear(ones(4, 4), r=2), lambda: Parameter(ones(3)), lambda: AdamW([Parameter(ones(3))])]
)
def test_objects_are_not_copied_or_turned_into_others(make: Callable[[], Any]) -> None:
    made, other = make(), NF4Tensor.quantize(ones(2, 64))
    for call in (copy.copy, copy.deepcopy, pickle.dumps, lambda o: object.__reduce_ex__(o, 2), weakref.ref):
        with pytest.raises(TypeError):
            call(made)
    with pytest.raises(TypeError):
        other.__class__ = type(made)
    type(made).__init__(made)  # changes nothing
    assert repr(made) == repr(made)


class TestMemoryStaysInPlace:
    """An array in use can be neither resized nor lose what it was made over."""

    @staticmethod
    def using() -> dict[str, Callable[[np.ndarray], Any]]:
        return {
            "LoRALinear": lambda w: lc.LoRALinear(w, r=2),
            "bias": lambda w: lc.LoRALinear(ones(6, 8), r=2, bias=w[0, :6]),
            "GGMLTensor": lambda w: (
                GGMLTensor.from_blocks(w.reshape(-1).view(np.uint8), (1, 32), "F16") if w.size == 16 else None
            ),
            "memoryview": lambda w: lc.LoRALinear(memoryview(w), r=2),
            "view": lambda w: lc.LoRALinear(w[2:4], r=2),
        }

    @pytest.mark.parametrize("name", ["LoRALinear", "bias", "memoryview", "view"])
    def test_resize(self, name: str) -> None:
        w = np.ones((6, 8), np.float32)
        layer = self.using()[name](w)
        with pytest.raises(ValueError, match="cannot resize"):
            w.resize((1,), refcheck=False)
        del layer
        w.resize((1,), refcheck=False)

    def test_resize_of_bfloat16_and_of_blocks(self) -> None:
        w, raw = np.ones((6, 8), BF16), np.zeros(64, np.uint8)
        kept = [lc.LoRALinear(w, r=2), GGMLTensor.from_blocks(raw, (1, 32), "F16")]
        for array in (w, raw):
            with pytest.raises(ValueError, match="cannot resize"):
                array.resize((1,), refcheck=False)
        assert kept

    def test_bytes_below_an_array(self) -> None:
        below = bytearray(4 * 48)
        for w in (np.ndarray((6, 8), np.float32, buffer=below), np.frombuffer(memoryview(below), np.float32).reshape(6, 8)):
            layer = lc.LoRALinear(w, r=2)
            del w
            with pytest.raises(BufferError):
                below.clear()
            layer.forward(ones(1, 8))

    def test_nobody_can_release_what_a_layer_holds(self) -> None:
        layer = lc.LoRALinear(np.ones((64, 64), np.float32), r=2, bias=np.ones(64, BF16))
        expected = layer.forward(ones(1, 64))
        for found in [*gc.get_objects(), *gc.get_referents(layer)]:
            if type(found) is memoryview:
                try:
                    found.release()
                except BufferError:
                    pass
            elif isinstance(found, np.ndarray):
                with pytest.raises(ValueError):
                    found.resize((1,), refcheck=False)
        assert np.array_equal(layer.forward(ones(1, 64)), expected)

    def test_nobody_can_empty_what_a_decoder_holds(self) -> None:
        model = Decoder(**SIZES)
        model.set_weight("embed_tokens", np.ones((4, 8), np.float32))
        for found in gc.get_referents(model):
            if type(found) is dict:
                assert not any(isinstance(value, np.ndarray) for value in found.values())
                assert not any(type(value).__name__ == "Export" for value in found.values())

    def test_views_outlive_what_they_show(self) -> None:
        p = Parameter(np.arange(1000, dtype=np.float32))
        views = [p.data, p.grad, np.asarray(memoryview(p)), memoryview(p)]
        del p
        blocks, codes = GGMLTensor.quantize(ones(2, 32)).blocks, NF4Tensor.quantize(ones(2, 64)).codes
        gc.collect()
        [np.zeros(1000) for _ in range(100)]
        assert (
            np.array_equal(views[0], np.arange(1000)) and not views[1].any() and views[2][999] == 999 and views[3][999] == 999
        )
        assert blocks.size == 2 * 34 and codes.size == 64
        for array in (views[0], views[1]):
            with pytest.raises(ValueError):
                array.resize((1,), refcheck=False)
        for array in (blocks, codes):
            with pytest.raises(ValueError):
                array.flags.writeable = True


class Unstable:
    """A list that its own members empty while it is read."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.items[0] = Spy(self.items.clear, items[0])


def test_lists_that_their_members_empty() -> None:
    assert np.array_equal(ops.embedding(Unstable([0, 1, 2, 3]).items, ones(4, 8)), ones(4, 8))
    turned = ops.rope(ones(3, 1, 4), Unstable([0, 1, 2]).items, Unstable([1.0, 0.5]).items)
    assert np.array_equal(turned, ops.rope(ones(3, 1, 4), [0, 1, 2], [1.0, 0.5]))


@pytest.mark.parametrize(
    "bad", [[0, 1.0], [0, True], [0, "1"], [0, None], [[0], [1]], [0, np.array([1, 2])], [0, np.float32(1)]]
)
def test_a_list_of_ids_holds_whole_numbers(bad: list[Any]) -> None:
    with pytest.raises(TypeError, match="ids: expected int32 or int64, got .* at index [01]"):
        ops.embedding(bad, ones(4, 8))


def test_lists_of_whole_numbers_of_any_kind() -> None:
    for ids in ([0, np.int64(1), np.uint8(2), np.array(3)], (0, 1, 2, 3), [Spy(lambda: None, i) for i in range(4)]):
        assert np.array_equal(ops.embedding(ids, ones(4, 8)), ones(4, 8))
    with pytest.raises(ValueError, match="ids: expected numbers of 32 bits, got 4294967296 at index 1"):
        ops.embedding([0, 2**32], ones(4, 8))
    with pytest.raises(ValueError, match="ids: expected at least one element"):
        ops.embedding([], ones(4, 8))


def test_a_failed_conversion_leaves_its_own_error() -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    for call in (
        lambda: ops.embedding([Spy(fail, 0)], ones(4, 8)),
        lambda: lc.LoRALinear(ones(4, 4), r=2, lora_alpha=Spy(fail, 1.0)),
        lambda: AdamW([Parameter(ones(3))], lr=Spy(fail, 1.0)),
        lambda: ops.rope(ones(1, 1, 4), [0], [Spy(fail, 1.0)]),
    ):
        with pytest.raises(KeyboardInterrupt):
            call()


def test_states_that_do_not_fit_change_nothing() -> None:
    p = [Parameter(ones(3), name="a"), Parameter(ones(2), name="b")]
    optimizer = AdamW(p)
    p[0].grad[...] = 1
    optimizer.step()
    before = optimizer.state_dict()

    good = [ones(3), ones(2)]
    for state in (
        {"step": 5, "m": good, "v": [ones(3), ones(3)]},
        {"step": 5, "m": good, "v": [ones(3)]},
        {"step": -1, "m": good, "v": good},
        {"step": 2**70, "m": good, "v": good},
        {"step": 5, "m": good, "v": good, "w": good},
        {"step": 5, "m": good},
    ):
        with pytest.raises((ValueError, TypeError), match="state"):
            optimizer.load_state_dict(state)
        after = optimizer.state_dict()
        assert after["step"] == before["step"]
        assert all(np.array_equal(a, b) for k in "mv" for a, b in zip(after[k], before[k], strict=True))


REFUSED: dict[str, Callable[[], Any]] = {
    "embedding": lambda: ops.embedding([0, 9], ones(4, 8)),
    "list": lambda: ops.embedding([0, 1.5], ones(4, 8)),
    "bfloat16": lambda: ops.rmsnorm(ones(2, 8).astype(BF16), ones(8)),
    "weight": lambda: lc.LoRALinear(np.ones((4, 4)), r=2),
    "adapter": lambda: lc.LoRALinear(ones(4, 4), r=2, A=ones(3, 4)),
    "optimizer": lambda: AdamW([PARAMETER, PARAMETER]),
    "state": lambda: OPTIMIZER.load_state_dict({"step": 1, "m": [ones(3)], "v": [ones(2)]}),
    "blocks": lambda: GGMLTensor.from_blocks(np.zeros(63, np.uint8), (1, 32), "F16"),
    "rope": lambda: ops.rope(ones(1, 1, 4), [0], np.ones(3)),
    "decoder": lambda: Decoder(**SIZES, rope_inv_freq=np.ones(9)),
    "set_weight": lambda: MODEL.set_weight("norm", ones(9)),
    "set_adapter": lambda: MODEL.set_adapter("layers.0.q_proj", PARAMETER, PARAMETER, scale=1.0),
    "rows": lambda: MODEL.set_token_rows([0, 1], PARAMETER),
    "prompt": lambda: MODEL.set_virtual_tokens("prompt", PARAMETER),
    "encoder": lambda: MODEL.set_virtual_tokens("prefix", [PARAMETER] * 5),
    "cache": lambda: MODEL.new_cache(17),
}
PARAMETER = Parameter(ones(3))
OPTIMIZER = AdamW([PARAMETER])
MODEL = Decoder(**SIZES)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_call_leaks_nothing(name: str) -> None:
    def fail() -> None:
        with pytest.raises((TypeError, ValueError)):
            REFUSED[name]()

    objects = [PARAMETER, None, BF16, MODEL, Parameter, type(MODEL)]
    for _ in range(3):
        fail()
    gc.collect()
    before, memory = [sys.getrefcount(o) for o in objects], lc.memory_report()["total"]["live"]
    for _ in range(50):
        fail()
    gc.collect()
    after = [sys.getrefcount(o) for o in objects]
    assert all(b - a < 25 for a, b in zip(before, after, strict=True)), (before, after)
    assert lc.memory_report()["total"]["live"] <= memory


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self, held: Any) -> None:
        self.held, self.me = held, self


def blocks_of_a_memoryview() -> GGMLTensor:
    return GGMLTensor.from_blocks(memoryview(bytearray(34 * 64)), (32, 64), "Q8_0")


def decoder_over_a_memoryview() -> Decoder:
    model = Decoder(**SIZES)
    model.set_weight("layers.0.q_proj", memoryview(bytearray(4 * 64)).cast("f", (8, 8)))
    model.set_weight("norm", memoryview(bytearray(4 * 8)).cast("f"))
    return model


@pytest.mark.parametrize(
    "make",
    [
        blocks_of_a_memoryview,
        decoder_over_a_memoryview,
        lambda: lc.LoRALinear(memoryview(bytearray(4 * 64)).cast("f", (8, 8)), r=2),
        lambda: lc.LoRALinear(blocks_of_a_memoryview(), r=2),
        lambda: lc.LoRALinear(ones(8, 8), r=2, bias=memoryview(bytearray(4 * 8)).cast("f")),
        lambda: lc.LoRALinear(np.frombuffer(mmap.mmap(-1, 4096), np.float32)[:64].reshape(8, 8), r=2),
        lambda: lc.LoRALinear((ctypes.c_float * 8 * 8)(), r=2),
    ],
)
def test_memory_of_garbage_outlives_who_reads_it(make: Callable[[], Any]) -> None:
    gc.collect()
    gc.disable()  # what is read is older than who reads it, so it is cleared first
    try:
        for _ in range(20):
            Cycle(make())
        assert gc.collect() > 0
    finally:
        gc.enable()


def test_garbage_with_arrays_of_a_subclass_is_found() -> None:
    class Array(np.ndarray):
        layer: Any

    array = ones(8, 8).view(Array)
    array.layer = lc.LoRALinear(array, r=2)
    gone = weakref.ref(array)
    del array
    gc.collect()
    assert gone() is None


LONG: Any = np.zeros((40, 40))
ONE_LINE: dict[str, Callable[[Any], Any]] = {
    "seed": lambda bad: lc.LoRALinear(ones(4, 4), r=2, seed=bad),
    "step": lambda bad: lc.LoRALinear(ones(4, 4), lora_dropout=0.5).forward(ones(2, 4), training=True, step=bad),
    "dtype": lambda bad: NF4Tensor.quantize(ones(2, 64)).dequantize(dtype=bad),
    "recompute": lambda bad: setattr(MODEL, "recompute", bad),
    "activation_dtype": lambda bad: setattr(MODEL, "activation_dtype", bad),
    "params": AdamW,
    "state": OPTIMIZER.load_state_dict,
    "step of a state": lambda bad: OPTIMIZER.load_state_dict({"step": bad, "m": [ones(3)], "v": [ones(3)]}),
}


@pytest.mark.parametrize("name", ONE_LINE)
def test_a_value_of_the_wrong_type_is_refused_in_one_short_line(name: str) -> None:
    for bad in (LONG, "x" * 10_000, -(10**3000), -(10**5000), ["a\nb"], b"x" * 1000, object(), 1.5, None):
        with pytest.raises((TypeError, ValueError)) as error:
            ONE_LINE[name](bad)
        assert "\n" not in str(error.value) and len(str(error.value)) < 200, bad


def test_what_an_interrupt_ends_stays_an_interrupt() -> None:
    class Bad:
        def __repr__(self) -> str:
            raise KeyboardInterrupt

    for call in (lambda: lc.LoRALinear(ones(4, 4), r=2, seed=Bad()), lambda: setattr(MODEL, "recompute", Bad())):
        with pytest.raises(KeyboardInterrupt):
            call()


def test_parameters_without_end_are_refused() -> None:
    tracemalloc.start()
    try:
        for endless in (itertools.count(), itertools.repeat(PARAMETER), np.broadcast_to(np.float32(1), (2**30, 2**30))):
            with pytest.raises(ValueError, match="params: expected a list of Parameter objects, got more than 1048576"):
                AdamW(endless)
            with pytest.raises(ValueError, match="no_decay: expected a list of Parameter objects, got more than"):
                AdamW([PARAMETER], no_decay=endless)
        assert tracemalloc.get_traced_memory()[1] < 400 << 20
    finally:
        tracemalloc.stop()
    assert AdamW(iter([PARAMETER]), no_decay={PARAMETER: 1}.keys()) is not None
