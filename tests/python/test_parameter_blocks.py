"""Parameters that lie behind each other in one block of memory: how they are made, who holds them, and what trains them."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lora_c as lc
from lora_c._core import AdamW, Parameter

pytestmark = pytest.mark.usefixtures("on_cpu")  # addresses are seen of the memory of the host alone
RNG = np.random.default_rng(0)
SHAPES = [(3, 5), (70000,), (1,), (2, 3, 4), (257, 129)]


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def bytes_of(purpose: str = "total") -> int:
    gc.collect()  # what other tests have left
    return lc.memory_report()[purpose]["live"]


def lie_behind_each_other(parameters: list[Parameter]) -> bool:
    """Whether each begins where the one before ends, in data and gradients."""
    arrays = [[p.data for p in parameters], [p.grad for p in parameters if p.grad is not None]]
    return all(
        a.ctypes.data + a.nbytes == b.ctypes.data for flat in arrays for a, b in zip(flat, flat[1:], strict=False)
    )  # fmt: skip


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_block(requires_grad: bool) -> None:
    before = bytes_of("gradients")
    made = Parameter.block(SHAPES, names=[f"p{i}" for i in range(5)], requires_grad=requires_grad)
    n = sum(p.size for p in made)
    assert [p.shape for p in made] == SHAPES and [p.name for p in made] == ["p0", "p1", "p2", "p3", "p4"]
    assert all(p.requires_grad is requires_grad and not p.data.any() for p in made)
    assert lie_behind_each_other(made) and not lie_behind_each_other([Parameter(random(4)), Parameter(random(4))])
    assert bytes_of("gradients") - before == (4 * n if requires_grad else 0)
    for i, p in enumerate(made):
        p.data[...] = i
    assert all((p.data == i).all() for i, p in enumerate(made))
    assert {p.name for p in Parameter.block([(2,), (3,)])} == {""}


def test_a_block_lives_as_long_as_a_view_of_it() -> None:
    before = bytes_of("parameters")
    made = Parameter.block(SHAPES)
    size = bytes_of("parameters") - before
    assert size == 4 * sum(p.size for p in made)
    made[1].data[...] = 7
    view, buffer, grad = made[1].data, memoryview(made[3]), made[2].grad
    del made
    assert bytes_of("parameters") - before == size and (view == 7).all() and buffer.shape == (2, 3, 4) and not grad.any()
    del view, grad
    buffer.release()
    assert bytes_of("parameters") == before


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "none": (lambda: Parameter.block([]), ValueError, "shapes: expected at least one, got none"),
    "no list": (lambda: Parameter.block(5), TypeError, "shapes: expected a list of tuples of int, got int"),
    "no tuple": (lambda: Parameter.block([5]), TypeError, "shapes: expected tuples of int, got int"),
    "text": (lambda: Parameter.block(["ab"]), TypeError, "shapes: expected tuples of int, got str at index 0"),
    "float": (lambda: Parameter.block([(2,), (1.5,)]), TypeError, "shapes: expected tuples of int, got float at index 1"),
    "scalar": (lambda: Parameter.block([()]), ValueError, "shapes: expected 1 to 8 dimensions, got 0 at index 0"),
    "deep": (lambda: Parameter.block([(1,) * 9]), ValueError, "shapes: expected 1 to 8 dimensions, got 9 at index 0"),
    "empty": (lambda: Parameter.block([(2, 0)]), ValueError, "shapes: expected sizes >= 1 that fit the memory, got 0"),
    "negative": (lambda: Parameter.block([(-(10**40),)]), ValueError, "shapes: expected sizes >= 1 that fit .*, got -"),
    "product": (lambda: Parameter.block([(2**62, 4)]), ValueError, "shapes: expected sizes >= 1 that fit the memory, got 4"),
    "sum": (lambda: Parameter.block([(2**61,), (2**61,)]), MemoryError, "shapes: expected sizes that fit the memory, got"),
    "memory": (lambda: Parameter.block([(2**50,)]), MemoryError, "data: expected 4503599627370496 bytes of memory, got none"),
    "names": (lambda: Parameter.block([(2,)], names=[]), ValueError, "names: expected one for each of 1 shapes, got 0"),
    "bytes": (lambda: Parameter.block([(2,)], names=[b"x"]), TypeError, "names: expected a list of str, got bytes at index 0"),
    "endless": (lambda: Parameter.block(itertools.repeat((1,))), ValueError, "shapes: expected a list .*, got more than 10"),
    "long": (lambda: Parameter.block([itertools.repeat(1)]), ValueError, "shapes: expected tuples of int, got more than"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_block_is_refused(name: str) -> None:
    call, error, message = BAD[name]
    before = bytes_of()
    with pytest.raises(error, match=f"^{message}"):
        call()
    assert bytes_of() == before


def test_sizes_and_names_that_empty_their_lists() -> None:
    class Emptying:
        def __init__(self, value: int, *lists: list[Any]) -> None:
            self.value, self.lists = value, lists

        def __index__(self) -> int:
            [found.clear() for found in self.lists]
            return self.value

    shapes: list[Any] = [[2, 3], [4]]
    names = ["a", "b"]
    shapes[0][0] = Emptying(2, shapes, shapes[0], names)
    with pytest.raises(ValueError, match="names: expected one for each of 2 shapes, got 0"):
        Parameter.block(shapes, names=names)
    shapes = [[2, 3], [4]]
    shapes[0][0] = Emptying(2, shapes, shapes[0])
    assert [p.shape for p in Parameter.block(shapes, names=["a", "b"])] == [(2, 3), (4,)]


@pytest.mark.parametrize("max_grad_norm", [None, 1.5, 1e9])
def test_the_optimizer_gives_the_bits_of_separate_parameters(max_grad_norm: float | None) -> None:
    together, apart = Parameter.block(SHAPES), [Parameter(np.zeros(shape, np.float32)) for shape in SHAPES]
    for a, b in zip(together, apart, strict=True):
        a.data[...] = b.data[...] = random(*a.shape)
    options: dict[str, Any] = dict(lr=1e-2, weight_decay=0.1)
    first, second = AdamW(together, **options, no_decay=together[2:4]), AdamW(apart, **options, no_decay=apart[2:4])
    for _ in range(3):
        for a, b in zip(together, apart, strict=True):
            a.grad[...] = b.grad[...] = random(*a.shape)
        norms = [o.step(max_grad_norm=max_grad_norm, grad_scale=0.5) for o in (first, second)]
        assert norms[0] == norms[1]
        assert all(np.array_equal(a.data, b.data) for a, b in zip(together, apart, strict=True))
    for key in ("m", "v"):
        assert all(np.array_equal(a, b) for a, b in zip(first.state_dict()[key], second.state_dict()[key], strict=True))
    second.load_state_dict(first.state_dict())
    first.zero_grad()
    assert not any(p.grad.any() for p in together)


ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "whole head": {"modules_to_save": ["lm_head"]},
    "token rows": {"trainable_token_indices": [3, 5, 8]},
    "biases": {"bias": "lora_only", "init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_one_block(make_model: Callable[..., Any], name: str, tmp_path: Any) -> None:
    model = lc.load_model(make_model(attention_bias=name == "biases"))
    model.add_adapter(lc.LoraConfig(r=2, target_modules="all-linear", **ADAPTERS[name]))
    trained = model.trainable_parameters()
    assert len(trained) > 20 and lie_behind_each_other(trained)
    model.save_adapter(tmp_path / "adapter")
    again = lc.load_model(tmp_path / "model")
    again.load_adapter(tmp_path / "adapter", is_trainable=False)
    kept = again.adapter.parameters()
    assert not again.trainable_parameters() and lie_behind_each_other(kept)
    values = {p.name: p.data for p in kept}
    assert len(values) == len(trained) and all(np.array_equal(p.data, values[p.name]) for p in trained)


@pytest.mark.parametrize("trainable", ["full", "head"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("more", [False, True])
def test_trained_weights_are_one_block(make_model: Callable[..., Any], trainable: Any, tied: bool, more: bool) -> None:
    folder = make_model(tie_word_embeddings=tied)
    before = {p: bytes_of(p) for p in ("parameters", "gradients")}
    lc.reset_peak_memory()
    model = lc.load_model(folder, trainable=trainable)
    peak = lc.memory_report()
    if more:
        model.resize_embedding(66)
    trained = model.trainable_parameters()
    assert len(trained) == (len(model.weights) if trainable == "full" else 1) and lie_behind_each_other(trained)
    size = 4 * sum(p.size for p in trained)
    assert {p: bytes_of(p) - live for p, live in before.items()} == {"parameters": size, "gradients": size}
    if not more:
        assert all(peak[p]["peak"] - live == size for p, live in before.items())
