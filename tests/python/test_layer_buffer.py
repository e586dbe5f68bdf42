"""The buffer of a LoRALinear: all of its adapter as one flat array."""

from __future__ import annotations

import ctypes
import gc
import pickle
import struct
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lora_c as lc
from lora_c import reference
from lora_c._core import AdamW, Parameter

R, K, N = 3, 7, 5
RNG = np.random.default_rng(1)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


W = random(N, K)


def parts(layer: lc.LoRALinear) -> list[np.ndarray]:
    return [p.data for p in (layer.A, layer.B, layer.magnitude) if p is not None]


def block_with_bias() -> lc.LoRALinear:
    a, b, bias = Parameter.block([(R, K), (N, R), (N,)])
    return lc.LoRALinear(W, r=R, A=a, B=b, bias=bias)


WHOLE: dict[str, tuple[Callable[[], lc.LoRALinear], int]] = {
    "fresh": (lambda: lc.LoRALinear(W, r=R), 0),
    "dora": (lambda: lc.LoRALinear(W, r=R, use_dora=True), N),
    "arrays": (lambda: lc.LoRALinear(W, r=R, A=random(R, K), B=random(N, R), magnitude=random(N)), N),
    "bias of its own memory": (lambda: lc.LoRALinear(W, r=R, bias=Parameter(random(N))), 0),
    "bias in the block": (block_with_bias, N),
    "block": (lambda: lc.LoRALinear(W, r=R, **dict(zip("AB", Parameter.block([(R, K), (N, R)]), strict=True))), 0),
    "nf4": (lambda: lc.LoRALinear(lc.NF4Tensor.quantize(W), r=R), 0),
    "trained base": (lambda: lc.LoRALinear(Parameter(W), r=R), 0),
}


@pytest.mark.parametrize("name", WHOLE)
def test_everything_behind_each_other(name: str) -> None:
    make, more = WHOLE[name]
    layer = make()
    view = memoryview(layer)
    assert (view.format, view.ndim, view.itemsize, view.shape) == ("f", 1, 4, (R * K + N * R + more,))
    assert not view.readonly and view.contiguous and view.nbytes == 4 * view.shape[0]
    flat = np.asarray(view)
    bias = [p.data for p in layer.parameters()[2:] if p.shape == (N,)] if name == "bias in the block" else []
    assert np.array_equal(flat, np.concatenate([a.ravel() for a in parts(layer) + bias]))
    flat[:] = np.arange(len(flat))
    assert np.array_equal(np.concatenate([a.ravel() for a in parts(layer) + bias]), np.arange(len(flat)))
    layer.B.data[-1, -1] = -5
    assert flat[R * K + N * R - 1] == -5 and all(np.shares_memory(a, flat) for a in parts(layer))


@pytest.mark.parametrize("dora", [False, True])
def test_written_through(dora: bool) -> None:
    layer, x = lc.LoRALinear(W, r=R, lora_alpha=R, use_dora=dora), random(4, K)
    start = layer.forward(x)
    flat = np.asarray(layer)
    flat[: R * K + N * R] = random(R * K + N * R)
    got = layer.forward(x)
    a, b = flat[: R * K].reshape(R, K), flat[R * K : R * K + N * R].reshape(N, R)
    full = W + b.astype(np.float64) @ a
    if dora:
        full *= (flat[-N:] / np.linalg.norm(full, axis=1))[:, None]
    assert np.abs(got - start).max() > 0.1
    np.testing.assert_allclose(got, x @ full.T, rtol=1e-4, atol=1e-4)


def test_the_average_of_two_layers() -> None:
    layers = [lc.LoRALinear(W, r=R, lora_alpha=2 * R, A=random(R, K), B=random(N, R)) for _ in range(2)]
    mean, x = lc.LoRALinear(W, r=R, lora_alpha=2 * R), random(6, K)
    np.mean([np.asarray(memoryview(layer)) for layer in layers], axis=0, out=np.asarray(memoryview(mean)))
    assert np.array_equal(mean.A.data, (layers[0].A.data + layers[1].A.data) / 2)
    want = reference.lora_linear(x, W, mean.A.data, mean.B.data, 2.0)
    np.testing.assert_allclose(mean.forward(x), want, rtol=1e-5, atol=1e-5)
    assert np.abs(mean.forward(x) - layers[0].forward(x)).max() > 0.1


def test_sent_and_saved_with_one_copy(tmp_path: Any) -> None:
    layer, other = (lc.LoRALinear(W, r=R, A=random(R, K), B=random(N, R)) for _ in range(2))
    (tmp_path / "layer").write_bytes(layer)
    assert (tmp_path / "layer").read_bytes() == bytes(layer) == b"".join(a.tobytes() for a in parts(layer))
    with open(tmp_path / "layer", "rb") as file:
        assert file.readinto(other) == len(bytes(layer))
    assert bytes(other) == bytes(layer)
    memoryview(other)[0] = 2.5
    assert other.A.data[0, 0] == 2.5 and struct.unpack_from("f", other)[0] == 2.5


def test_the_optimizer_trains_what_the_buffer_shows() -> None:
    layer = lc.LoRALinear(W, r=R, B=random(N, R))
    flat = np.asarray(layer)
    before = flat.copy()
    layer.backward(random(4, N), random(4, K))
    AdamW(layer.parameters(), lr=0.1).step()
    assert (flat != before).all()


def test_it_stays_when_the_layer_is_gone() -> None:
    gc.collect()  # what other tests have left
    before = lc.memory_report()["parameters"]["live"]
    layer = lc.LoRALinear(W, r=R, A=random(R, K))
    view, array, A = memoryview(layer), np.asarray(layer), layer.A
    want = array.copy()
    del layer
    gc.collect()
    [np.zeros(1000) for _ in range(100)]
    assert np.array_equal(view, want) and np.array_equal(array, want)
    view.release()
    del array
    gc.collect()
    assert lc.memory_report()["parameters"]["live"] - before == 4 * (R * K + N * R)  # A is held, and so is its block
    assert np.array_equal(A.data.ravel(), want[: R * K])
    del A
    gc.collect()
    assert lc.memory_report()["parameters"]["live"] == before


def test_released_exports() -> None:
    layer = lc.LoRALinear(W, r=R)
    view = memoryview(layer)
    part = view[2:4]
    with pytest.raises(ValueError):
        view.release() or view.tolist()
    assert part.tolist() == layer.A.data[0, 2:4].tolist()
    part.release()
    with memoryview(layer) as again:
        assert again.shape == (R * K + N * R,)
    with pytest.raises(ValueError, match="released"):
        again.tolist()
    assert memoryview(layer).toreadonly().readonly
    with pytest.raises(TypeError):
        memoryview(layer).toreadonly()[0] = 1.0


class Buffer(ctypes.Structure):
    _fields_ = [
        ("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t), ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int), ("ndim", ctypes.c_int), ("format", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_ssize_t)), ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
        ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
    ]  # fmt: skip


SIMPLE, WRITABLE, FORMAT, ND, STRIDES = 0, 1, 4, 8, 0x10 | 8
C_ORDER, F_ORDER, ANY_ORDER, INDIRECT = 0x20 | STRIDES, 0x40 | STRIDES, 0x80 | STRIDES, 0x100 | STRIDES


def request(o: Any, flags: int) -> tuple[Any, ...]:
    """What an exporter answers: length, item size, read-only, format, shape, strides; everything is released."""
    buffer, n = Buffer(), R * K + N * R
    get, release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release
    get.argtypes = [ctypes.py_object, ctypes.POINTER(Buffer), ctypes.c_int]
    get(o, ctypes.byref(buffer), flags)
    assert buffer.len == 4 * n and buffer.itemsize == 4 and not buffer.readonly and not buffer.suboffsets
    shape = [buffer.shape[i] for i in range(buffer.ndim)] if buffer.shape else None
    strides = [buffer.strides[i] for i in range(buffer.ndim)] if buffer.strides else None
    answer = (buffer.format, shape, strides)
    release.argtypes = [ctypes.POINTER(Buffer)]
    release(ctypes.byref(buffer))
    return answer


@pytest.mark.parametrize("writable", [0, WRITABLE])
def test_requests(writable: int) -> None:
    layer, n = lc.LoRALinear(W, r=R), R * K + N * R
    assert request(layer, SIMPLE | writable) == (None, None, None)
    assert request(layer, ND | writable) == (None, [n], None)
    for flags in (STRIDES, C_ORDER, F_ORDER, ANY_ORDER, INDIRECT):
        assert request(layer, flags | writable) == (None, [n], [4])
        assert request(layer, flags | FORMAT | writable) == (b"f", [n], [4])
    matrix = Parameter(random(4, 9))
    for flags in (STRIDES, C_ORDER, ANY_ORDER):
        assert request(matrix, flags | FORMAT | writable) == (b"f", [4, 9], [36, 4])
    with pytest.raises(BufferError, match="Parameter: expected a request for rows behind each other, got one for columns"):
        request(matrix, F_ORDER)


def two() -> tuple[Parameter, Parameter]:
    return Parameter(random(R, K)), Parameter(random(N, R))


def swapped() -> lc.LoRALinear:
    b, a = Parameter.block([(N, R), (R, K)])
    return lc.LoRALinear(W, r=R, A=a, B=b)


def with_a_gap() -> lc.LoRALinear:
    a, _, b = Parameter.block([(R, K), (1,), (N, R)])
    return lc.LoRALinear(W, r=R, A=a, B=b)


TWO = "A, B behind each other in one block of memory, got B"
APART: dict[str, tuple[Callable[[], lc.LoRALinear], str]] = {
    "both shared": (lambda: lc.LoRALinear(W, r=R, A=two()[0], B=two()[1]), TWO),
    "A shared": (lambda: lc.LoRALinear(W, r=R, A=two()[0]), TWO),
    "B shared": (lambda: lc.LoRALinear(W, r=R, B=two()[1]), TWO),
    "swapped": (swapped, TWO),
    "with a gap": (with_a_gap, TWO),
    "magnitude shared": (
        lambda: lc.LoRALinear(W, r=R, magnitude=Parameter(random(N))),
        "A, B and the magnitude behind each other in one block of memory, got the magnitude",
    ),
}


@pytest.mark.parametrize("name", APART)
def test_parts_that_lie_apart_are_refused(name: str) -> None:
    make, what = APART[name]
    layer = make()
    for call in (memoryview, bytes, np.frombuffer):
        with pytest.raises(BufferError, match=f"^LoRALinear: expected {what} elsewhere; give arrays, which are copied, or"):
            call(layer)
    layer.forward(random(2, K))  # it works as before


def test_as_an_argument() -> None:
    layer, x = lc.LoRALinear(W, r=R), random(2, K)
    assert np.array_equal(Parameter(layer).data, np.asarray(layer))
    with pytest.raises(ValueError, match=r"A: expected shape \(3, 7\), got shape \(36,\)"):
        lc.LoRALinear(W, r=R, A=layer)
    flat = np.asarray(layer)
    with pytest.raises(ValueError, match="out: expected memory apart from A, got overlapping buffers"):
        layer.forward(x, out=flat[: 2 * N].reshape(2, N))
    with pytest.raises(ValueError, match="out: expected memory apart from B, got overlapping buffers"):
        layer.forward(x, out=flat[-2 * N :].reshape(2, N))
    big = lc.LoRALinear(np.ones((4, 40), np.float32), r=1, bias=lc.LoRALinear(np.ones((1, 3), np.float32), r=1))
    gc.collect()
    assert big.forward(np.ones((1, 40), np.float32)).shape == (1, 4)


def test_pickling_stays_refused() -> None:
    layer = lc.LoRALinear(W, r=R)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            pickle.dumps(layer, protocol)
    assert len(pickle.dumps(pickle.PickleBuffer(layer), 5)) > 4 * (R * K + N * R)


def test_read_and_written_while_the_layer_is_in_use() -> None:
    layer = lc.LoRALinear(random(256, 256), r=16, B=random(256, 16))
    x, stop, seen, errors = random(512, 256), threading.Event(), [], []

    def use() -> None:
        try:
            while not stop.is_set():
                view = memoryview(layer)
                flat = np.asarray(view)
                flat *= np.float32(0.999)
                seen.append(bytes(view[:4]))
                del flat
                view.release()
        except Exception as error:  # noqa: BLE001 — a thread tells nobody
            errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        assert np.isfinite(layer.forward(x)).all()
    stop.set()
    for thread in threads:
        thread.join()
    assert seen and not errors


def test_a_layer_that_goes_while_others_look(alone: Callable[..., str]) -> None:
    alone("""
import gc, threading, numpy as np, lora_c as lc
def look():
    for _ in range(2000):
        for o in list(made):
            a = np.asarray(o); a[:] += 1; kept.append(a)
        del kept[:-5]
made, kept = [], []
threads = [threading.Thread(target=look) for _ in range(3)]
for t in threads: t.start()
W = np.ones((8, 8), np.float32)
for i in range(3000):
    made.append(lc.LoRALinear(W, r=2)); del made[:-3]
    if i % 500 == 0: gc.collect()
for t in threads: t.join()
del made[:], kept[:]; gc.collect()
assert lc.memory_report()["parameters"]["live"] == 0
""")
