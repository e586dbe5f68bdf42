"""Ids, lists and memory that another thread changes while a call runs without the interpreter lock."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

PRELUDE = """
import sys, threading, numpy as np, lora_c as lc
from lora_c import ops
from lora_c._core import AdamW, Decoder, GGMLTensor, NF4Tensor, Parameter
sys.setswitchinterval(1e-6)
stop = False
def meanwhile(change):
    def repeat():
        while not stop: change()
    thread = threading.Thread(target=repeat); thread.start(); return thread
def attempt(call, *also):
    try: return call()
    except (ValueError, *also): return None
def ones(*shape): return np.ones(shape, np.float32)
def decoder(vocab=1000):
    d = Decoder(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                head_dim=4, vocab_size=vocab, max_position_embeddings=20000, norm_eps=1e-5, rope_inv_freq=[1.0, 0.5],
                tie_word_embeddings=True)
    for n, s in dict(embed_tokens=(vocab, 8), norm=(8,)).items(): d.set_weight(n, ones(*s))
    for n, s in dict(input_layernorm=(8,), post_attention_layernorm=(8,), q_proj=(8, 8), k_proj=(4, 8), v_proj=(4, 8),
                     o_proj=(8, 8), gate_proj=(12, 8), up_proj=(12, 8), down_proj=(8, 12)).items():
        d.set_weight("layers.0." + n, ones(*s))
    return d
"""
FLIPS = """
ids = np.zeros(N, np.{dtype})
def flip(): ids[-1000:] = 2**30; ids[-1000:] = -2**30; ids[-1000:] = 0
thread = meanwhile(flip)
try:
    for _ in range(ROUNDS): attempt(call)
finally: stop = True
thread.join()
"""
CALLS = {
    "embedding": "N, ROUNDS, w = 200000, 60, ones(1000, 64)\ncall = lambda: ops.embedding(ids, w)",
    "embedding_backward": "N, ROUNDS, dy = 200000, 60, ones(200000, 4)\ncall = lambda: ops.embedding_backward(ids, dy, 1000)",
    "cross_entropy": "N, ROUNDS, x, w, l = 10000, 60, ones(10000, 8), ones(64, 8), ones(10000)\n"
    "call = lambda: ops.cross_entropy(x, w, ids, l, gradients=True)",
    "rope": "N, ROUNDS, x = 100000, 60, ones(100000, 1, 4)\ncall = lambda: ops.rope(x, ids, [1.0, 0.5])",
    "attention": "N, ROUNDS, x = 8000, 40, ones(7999, 1, 8)\n"
    "base = np.arange(8000)\ndef call():\n ids[:-1000] = base[:-1000]\n return ops.attention(x, x, x, ids)",
    "forward_backward": "N, ROUNDS, d, l = 4000, 25, decoder(), ones(4000)\n"
    "call = lambda: d.forward_backward(ids, [0, 4000], ids, l)",
    "loss": "N, ROUNDS, d, l = 4000, 25, decoder(), ones(4000)\ncall = lambda: d.loss(ids, [0, 4000], ids, l)",
    "logits": "N, ROUNDS, d = 4000, 25, decoder(16)\ncall = lambda: d.logits(ids)",
    "decode": "N, ROUNDS, d = 4000, 25, decoder()\nc = d.new_cache(4000)\n"
    "def call():\n c.truncate(0, 0)\n return d.decode(c, ids)",
    "token rows": "N, ROUNDS, d = 4000, 60, decoder(5000)\n"
    "d.set_weight('embed_tokens', Parameter(ones(5000, 8)))\nrows = Parameter(ones(4000, 8))\n"
    "call = lambda: (d.set_token_rows(ids, rows), d.forward_backward([0, 1], [0, 2], [0, 1], ones(2)))",
}


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("name", CALLS)
def test_ids(name: str, dtype: str, alone: Callable[..., str]) -> None:
    alone(f"{PRELUDE}\n{CALLS[name]}\n{FLIPS.format(dtype=dtype)}")


LOSS_WEIGHTS = """
N, l = 10000, np.zeros(10000, np.float32)
bad = np.full(N, 2**30, np.int32)
x, w, d = ones(N, 8), ones(64, 8), decoder(64)
def flip(): l[:] = 1; l[:] = 0
thread = meanwhile(flip)
try:
    for _ in range(60):
        attempt(lambda: ops.cross_entropy(x, w, bad, l, gradients=True))
        attempt(lambda: d.loss(np.zeros(N, np.int32), [0, N], bad, l))
finally: stop = True
thread.join()
"""


def test_loss_weights_that_say_which_targets_are_read(alone: Callable[..., str]) -> None:
    alone(PRELUDE + LOSS_WEIGHTS)


LISTS = """
def empty():
    for l in lists: l.clear()
def filled(n, make): return [make() for _ in range(n)]
p = [Parameter(ones(20000)) for _ in range(8)]
optimizer = AdamW(p)
good = [ones(20000) for _ in p]
params, no_decay, moments, shapes, names = [], [], [], [], []
lists = [params, no_decay, moments, shapes, names]
thread = meanwhile(empty)
try:
    for _ in range(1500):
        params.extend(Parameter(ones(20000)) for _ in range(8))
        attempt(lambda: AdamW(params), TypeError)
        no_decay.extend(p)
        attempt(lambda: AdamW(p, no_decay=no_decay), TypeError)
        moments.extend(a.copy() for a in good)
        attempt(lambda: optimizer.load_state_dict({"step": 1, "m": moments, "v": good}), TypeError)
        shapes.extend([[2000], [3, 4]])
        names.extend(["a", "b"])
        attempt(lambda: Parameter.block(shapes, names=names), TypeError)
        moments.extend(range(1000))
        attempt(lambda: ops.embedding(moments, ones(1000, 1)), TypeError)
finally: stop = True
thread.join()
"""


def test_lists(alone: Callable[..., str]) -> None:
    alone(PRELUDE + LISTS)


RESIZED = """
def resize():
    for a in arrays:
        try: a.resize((1,), refcheck=False)
        except ValueError: pass
x, w, g = np.ones((512, 512), np.float32), np.ones((512, 512), np.float32), np.ones((512, 512), np.float32)
layer = lc.LoRALinear(w, r=4)
for _ in range(200):
    arrays = [np.ones((512, 512), np.float32) for _ in range(3)]
    threads = [threading.Thread(target=resize)]
    threads[0].start()
    attempt(lambda: layer.backward(arrays[0], arrays[1], out=arrays[2]))
    attempt(lambda: ops.linear(arrays[0], arrays[1]))
    threads[0].join()
"""


@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="without a GIL ndarray.resize(refcheck=False) takes no lock: nobody sees that it has begun",
)
def test_arrays_that_are_resized_in_use(alone: Callable[..., str]) -> None:
    alone(PRELUDE + RESIZED)


SETTINGS = """
d, layer, x, n = decoder(), lc.LoRALinear(ones(256, 256), r=4), ones(256, 256), 0
def change():
    global n
    n += 1
    lc.set_num_threads(1 + n % 3)
    d.scratch_bytes(100), d.arena_bytes(100), lc.memory_report()
thread = meanwhile(change)
try:
    expected = layer.forward(x)
    for _ in range(300): assert np.array_equal(layer.forward(x), expected)
finally: stop = True
thread.join()
"""


def test_settings_that_change_in_the_middle(alone: Callable[..., str]) -> None:
    alone(PRELUDE + SETTINGS)


WEIGHTS = """
d, n = decoder(), 0
def change():
    global n
    n += 1
    for name, shape in (("embed_tokens", (1000, 8)), ("layers.0.q_proj", (8, 8)), ("norm", (8,))):
        try: d.set_weight(name, np.full(shape, n % 3, np.float32))
        except RuntimeError: pass
thread = meanwhile(change)
try:
    for _ in range(200): attempt(lambda: d.logits([1, 2, 3]), RuntimeError)
finally: stop = True
thread.join()
"""


def test_weights_that_are_replaced_in_the_middle(alone: Callable[..., str]) -> None:
    alone(PRELUDE + WEIGHTS)
