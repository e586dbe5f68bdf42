"""One object used by many threads at once: serialised, or refused with RuntimeError; never a crash, never other bits.

With a free-threaded Python (`python3.13t -X gil=0 -m pytest tests/python/test_shared_objects.py`) nothing but the extension
keeps them apart.
"""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lora_c as lc
from lora_c import _core

THREADS, SECONDS = 6, 0.7
HIDDEN, VOCAB, TOKENS = 64, 200, 48
IN_USE = "in use by another thread"


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def make_decoder() -> _core.Decoder:
    made = _core.Decoder(
        hidden_size=HIDDEN, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, vocab_size=VOCAB, max_position_embeddings=256, norm_eps=1e-5, rope_inv_freq=[1.0, 0.5],
    )  # fmt: skip
    shapes = {
        "input_layernorm": (64,), "post_attention_layernorm": (64,), "q_proj": (64, 64), "k_proj": (32, 64),
        "v_proj": (32, 64), "o_proj": (64, 64), "gate_proj": (128, 64), "up_proj": (128, 64), "down_proj": (64, 128),
    }  # fmt: skip
    all_shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (VOCAB, HIDDEN), "lm_head": (VOCAB, HIDDEN), "norm": (HIDDEN,)}
    all_shapes |= {f"layers.{layer}.{name}": shape for layer in range(2) for name, shape in shapes.items()}
    for seed, (name, shape) in enumerate(all_shapes.items()):
        made.set_weight(name, normal(seed, *shape) * np.float32(0.1))
    return made


def together(*work: Callable[[int], object]) -> dict[str, int]:
    """Each of the functions in threads for a while, called with a number of the call; how often each was done, and refused."""
    counts: dict[str, int] = dict.fromkeys([*(f.__name__ for f in work), "refused"], 0)
    failed: list[BaseException] = []
    lock, gate = threading.Lock(), threading.Barrier(THREADS)

    def run(f: Callable[[int], object], end: float) -> None:
        gate.wait(30)
        for number in itertools.count():
            if failed or (time.monotonic() > end and counts[f.__name__]):
                return
            what = f.__name__
            try:
                f(number)
            except RuntimeError as error:
                if IN_USE not in str(error):
                    failed.append(error)
                what = "refused"
                time.sleep(0)
            except BaseException as error:
                failed.append(error)
            with lock:
                counts[what] += 1

    functions = itertools.islice(itertools.cycle(work), THREADS)
    threads = [threading.Thread(target=run, args=(f, time.monotonic() + SECONDS)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return counts


def test_the_extension_leaves_the_gil_off() -> None:
    is_enabled = getattr(sys, "_is_gil_enabled", None)
    if is_enabled is None or not getattr(sys, "abiflags", "").startswith("t"):
        pytest.skip("this Python has a GIL")
    assert not is_enabled()


def test_a_decoder() -> None:
    decoder = make_decoder()
    ids = np.arange(TOKENS) % VOCAB
    want = decoder.logits(ids).tobytes()
    A, B = lc.Parameter(normal(1, 4, HIDDEN)), lc.Parameter(np.zeros((HIDDEN, 4), np.float32))  # B is zero: the same logits

    def logits(number: int) -> None:
        assert decoder.logits(ids).tobytes() == want

    def change(number: int) -> None:
        if number % 2:
            decoder.set_adapter("layers.0.q_proj", A, B, scale=1.0)
        else:
            decoder.remove_adapter("layers.0.q_proj")

    def free(number: int) -> None:
        decoder.free_activations()
        decoder.set_weight("norm", normal(2, HIDDEN) * np.float32(0.1))

    free(0)
    want = decoder.logits(ids).tobytes()
    counts = together(logits, change, free)
    assert counts["logits"] and counts["change"] and counts["free"]
    assert decoder.logits(ids).tobytes() == want


def test_the_settings_of_a_decoder(tmp_path: Any) -> None:
    decoder = make_decoder()
    folders = [str(tmp_path), None, str(tmp_path / ("x" * 100))]

    def write(number: int) -> None:
        decoder.noise = (float(number), number)
        decoder.activation_offload = folders[number % 3]
        decoder.recompute = ["none", "layer"][number % 2]
        decoder.activation_dtype = ["float32", "bfloat16"][number % 2]
        decoder.precision = ["exact", "fast"][number % 2]
        decoder.watching = bool(number % 2)

    def read(number: int) -> None:
        alpha, seed = decoder.noise
        assert alpha == seed, "halves of two settings"
        assert decoder.activation_offload in folders
        assert decoder.recompute in ("none", "layer") and decoder.activation_dtype in ("float32", "bfloat16")
        assert decoder.precision in ("exact", "fast") and decoder.watching in (True, False)
        assert decoder.config["vocab_size"] == VOCAB and not decoder.stopping

    counts = together(write, read)
    assert counts["write"] and counts["read"]


def test_a_cache() -> None:
    decoder = make_decoder()
    cache = decoder.new_cache(TOKENS)
    ids = np.arange(8)
    want = decoder.decode(cache, ids).tobytes()

    def decode(number: int) -> None:
        own = decoder.new_cache(TOKENS)
        assert decoder.decode(own, ids).tobytes() == want

    def use(number: int) -> None:
        cache.truncate(0, min(4, cache.length()))
        cache.copy(0, 0, min(4, cache.length()))
        assert 0 <= cache.length() <= TOKENS and cache.n_sequences == 1

    counts = together(decode, use)
    assert counts["decode"] and counts["use"]


def test_an_optimizer() -> None:
    parameters = [lc.Parameter(normal(i, 40, 30)) for i in range(3)]
    optimizer = lc.AdamW(parameters, lr=0.0)
    before = [p.read().tobytes() for p in parameters]

    def step(number: int) -> None:
        optimizer.lr = 0.0
        optimizer.step(lr=0.0)
        assert optimizer.lr == 0.0

    def save(number: int) -> None:
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.step_count >= 0

    def clear(number: int) -> None:
        optimizer.zero_grad()
        parameters[number % 3].zero_grad()

    counts = together(step, save, clear)
    assert counts["step"] and counts["save"] and counts["clear"]
    assert [p.read().tobytes() for p in parameters] == before


def test_an_nf4_tensor_needs_no_lock() -> None:
    w = lc.NF4Tensor.quantize(normal(1, 64, 128))
    x = normal(2, 5, 128)
    want = [w.dequantize().tobytes(), lc.ops.linear(x, w).tobytes(), w.codes.tobytes()]

    def read(number: int) -> None:
        assert [w.dequantize().tobytes(), lc.ops.linear(x, w).tobytes(), w.codes.tobytes()] == want
        assert w.shape == (64, 128) and bytes(memoryview(w)) == want[2] and "NF4Tensor" in repr(w)

    counts = together(read)
    assert counts["read"] >= THREADS and not counts["refused"]


def test_a_layer_whose_parameters_come_and_go() -> None:
    live = _core.memory_report()["total"]["live"]
    layer = lc.LoRALinear(normal(1, 32, HIDDEN), r=4)
    x, out = normal(2, 9, HIDDEN), layer.forward(normal(2, 9, HIDDEN)).tobytes()

    def forward(number: int) -> None:
        assert layer.forward(x).tobytes() == out

    def look(number: int) -> None:
        views = [layer.A, layer.B, memoryview(layer), *layer.parameters(), layer.A.data, layer.B.grad]
        assert len(views) == 7

    def block(number: int) -> None:  # many holders of one block let go of it in several threads
        for p in _core.Parameter.block([(3, 4)] * 20):
            parts.append(p)
        del parts[: len(parts) // 2]

    parts: list[Any] = []
    counts = together(forward, look, block)
    assert counts["forward"] and counts["look"] and counts["block"]
    parts.clear()
    gc.collect()
    assert _core.memory_report()["total"]["live"] <= live + 65536  # scratch grows


def test_settings_of_the_module() -> None:
    threads, isa, w, x = lc.get_num_threads(), _core.get_isa(), normal(1, 30, 64), normal(2, 40, 64)
    want = lc.ops.linear(x, w).tobytes()

    def change(number: int) -> None:
        lc.set_num_threads(1 + number % 3)
        lc.set_isa(isa)
        assert _core.get_isa() == isa

    def compute(number: int) -> None:
        assert lc.ops.linear(x, w).tobytes() == want

    def report(number: int) -> None:
        assert _core.memory_report()["total"]["live"] >= 0
        _core.set_profiling(bool(number % 2))
        _core.profile_report()

    try:
        counts = together(change, compute, report)
    finally:
        lc.set_num_threads(threads)
        _core.set_profiling(False)
    assert counts["change"] and counts["compute"] and counts["report"] and not counts["refused"]
