"""Arrays and operations on a device from several threads at once: no crash, and the bits that each call has alone."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lora_c as lc
from lora_c import _core, ops

THREADS, ROUNDS = 3, 6
M, H, V = 20, 64, 24


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def as_bytes(results: Any) -> list[bytes]:
    """Bits of what an operation gives: numbers, arrays, or several of them."""
    results = results if isinstance(results, tuple) else (results,)
    return [np.asarray(r.to("cpu") if isinstance(r, lc.DeviceArray) else r).tobytes() for r in results]


def run_together(work: Callable[[int], None], n: int = THREADS) -> None:
    """Run work(0), work(1), … in threads that begin together; the first exception of theirs is raised."""
    failed: list[BaseException] = []
    gate = threading.Barrier(n)

    def run(index: int) -> None:
        try:
            gate.wait(30)
            work(index)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def calls(device: str, seed: int) -> dict[str, Callable[[], Any]]:
    """Operations of every family over arrays of their own."""
    x, w, gamma = (lc.to_device(normal(seed + i, *shape), device) for i, shape in enumerate([(M, H), (V, H), (H,)]))
    q, k = (lc.to_device(normal(seed + 5 + i, M, heads, 16), device) for i, heads in enumerate([4, 2]))
    q4 = lc.NF4Tensor.quantize(normal(seed + 9, V, H)).to(device)
    ids, weight = np.arange(M) % V, np.linspace(0, 1, M, dtype=np.float32)
    return {
        "swiglu": lambda: ops.swiglu(x, x), "rmsnorm_backward": lambda: ops.rmsnorm_backward(x, x, gamma),
        "linear": lambda: ops.linear(x, w), "nf4": lambda: ops.linear(x, q4),
        "few": lambda: ops.linear(gamma.reshape(1, H), q4), "weight": lambda: q4.to("cpu").dequantize(),
        "attention": lambda: ops.attention_backward(q, q, k, k, [0, 3, M]), "embedding": lambda: ops.embedding(ids, w),
        "cross_entropy": lambda: ops.cross_entropy(x, w, ids, weight, gradients=True),
        "sum_of_squares": lambda: ops.sum_of_squares(x), "array": lambda: x.reshape(-1),
    }  # fmt: skip


@pytest.mark.parametrize("shared", [False, True])
def test_operations_have_the_same_bits_in_several_threads(device: str, shared: bool) -> None:
    own = [calls(device, 0 if shared else 100 * index) for index in range(THREADS)]
    if shared:
        own = own[:1] * THREADS
    alone = [{name: as_bytes(call()) for name, call in each.items()} for each in own]

    def work(index: int) -> None:
        names = list(own[index])
        np.random.default_rng(index).shuffle(names)
        for _ in range(ROUNDS):
            for name in names:
                assert as_bytes(own[index][name]()) == alone[index][name], f"{name}: other bits"

    run_together(work)


def test_results_are_read_by_another_thread_than_computes_them(device: str) -> None:
    x = lc.to_device(normal(1, M, H), device)
    want = as_bytes(ops.swiglu(x, x))
    made: list[lc.DeviceArray] = []

    def work(index: int) -> None:
        for _ in range(40):
            if index == 0:
                made.append(ops.swiglu(x, x))
            elif made:
                assert as_bytes(made[-1]) == want

    run_together(work)
    assert len(made) == 40 and all(as_bytes(y) == want for y in made)


def test_layers_learn_in_threads_of_their_own_as_alone(device: str) -> None:
    base = lc.NF4Tensor.quantize(normal(3, V, H)).to(device)  # shared by all

    def learn(seed: int) -> list[bytes]:
        layer = lc.LoRALinear(base, r=4, B=normal(seed, V, 4), seed=seed)
        optimizer = lc.AdamW(layer.parameters())
        x, dy = lc.to_device(normal(seed + 1, M, H), device), lc.to_device(normal(seed + 2, M, V), device)
        for step in range(4):
            layer.forward(x, training=True, step=step)
            layer.backward(dy, x, training=True, step=step)
            optimizer.step(lr=1e-2, max_grad_norm=1.0)
            optimizer.zero_grad()
        return [p.read().tobytes() for p in layer.parameters()]

    alone, together = [learn(index) for index in range(THREADS)], [[b""]] * THREADS

    def work(index: int) -> None:
        together[index] = learn(index)

    run_together(work)
    assert together == alone


def test_a_layer_in_use_by_another_thread_is_refused_and_unharmed(device: str) -> None:
    layer = lc.LoRALinear(lc.NF4Tensor.quantize(normal(3, V, H)), r=4, B=normal(4, V, 4), device=device)
    inputs = [lc.to_device(normal(index, 1 + 9 * index, H), device) for index in range(THREADS)]
    alone = [as_bytes(layer.forward(x)) for x in inputs]

    def work(index: int) -> None:
        done = 0
        while done < 15:
            try:
                y = layer.forward(inputs[index])
            except RuntimeError as error:
                assert "in use by another thread" in str(error)
                time.sleep(1e-3)
            else:
                done += 1
                assert as_bytes(y) == alone[index]

    run_together(work)


def test_arrays_that_come_and_go_in_threads_are_given_back(device: str) -> None:
    def work(index: int) -> None:
        for round_ in range(40):
            x = lc.to_device(normal(index + round_, 3 + index, H), device)
            y = ops.scale_columns(x, lc.to_device(np.full(H, 2, np.float32), device))
            del x  # still read there
            z = y.reshape(-1)
            del y
            assert z.to("cpu").tobytes() == (2 * normal(index + round_, 3 + index, H)).tobytes()
            with pytest.raises(ValueError):
                z.reshape(7, 11)

    run_together(work)  # what a device keeps from then on
    gc.collect()
    before = _core.memory_report(device)["total"]["live"]
    run_together(work)
    gc.collect()
    assert _core.memory_report(device)["total"]["live"] == before


OPENED = """
import threading
import numpy as np
import lora_c as lc
gate, found = threading.Barrier(4), []
def work():
    gate.wait()
    x = lc.to_device(np.full((5, 8), 3, np.float32), {device!r})
    found.append(lc.ops.sum_of_squares(x))
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert found == [360.0] * 4, found
"""


def test_threads_that_open_a_device_together_share_it(device: str, alone: Callable[..., str]) -> None:
    for _ in range(3):
        alone(OPENED.format(device=device), gib=64)
