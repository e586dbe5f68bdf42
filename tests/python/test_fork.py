"""A child that is forked in the middle of a call can use every object at once and gets the same numbers."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

CODE = """
import os, signal, sys, threading, time, traceback
import numpy as np, lora_c as lc
from lora_c import ops
from lora_c._core import AdamW, Decoder, Parameter
lc.set_num_threads(2)
def ones(*shape): return np.ones(shape, np.float32)
def decoder():
    d = Decoder(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                head_dim=32, vocab_size=2000, max_position_embeddings=4096, norm_eps=1e-5, rope_inv_freq=[1.0, 0.5])
    rng = np.random.default_rng(0)
    def w(*shape): return rng.standard_normal(shape).astype(np.float32) * 0.1
    shapes = dict(input_layernorm=(64,), post_attention_layernorm=(64,), q_proj=(64, 64), k_proj=(32, 64), v_proj=(32, 64),
                  o_proj=(64, 64), gate_proj=(128, 64), up_proj=(128, 64), down_proj=(64, 128))
    for n, s in dict(embed_tokens=(2000, 64), lm_head=(2000, 64), norm=(64,)).items(): d.set_weight(n, w(*s))
    for layer in range(2):
        for n, s in shapes.items(): d.set_weight(f"layers.{layer}.{n}", w(*s))
    return d
ids = np.arange(512) % 2000
lin, x = lc.LoRALinear(np.ones((512, 512), np.float32), r=4, use_dora=True), ones(512, 512)
"""
LOOPS = {
    "LoRALinear.forward": ("", "lin.forward(x)"),
    "LoRALinear.backward": ("", "lin.backward(x, x)"),
    "LoRALinear.merge": ("", "lin.merge()"),
    "AdamW.step": ("p = [Parameter(ones(300000)) for _ in range(4)]; o = AdamW(p)", "o.step(lr=0.0) and None"),
    "Decoder.logits": ("d = decoder()", "d.logits(ids)"),
    "Decoder.hidden_states": ("d = decoder()", "d.hidden_states(ids, 1)"),
    "Decoder.loss": ("d = decoder()", "d.loss(ids, [0, 512], ids, ones(512))"),
    "Decoder.decode": ("d = decoder(); c = d.new_cache(512)", "(c.truncate(0, 0), d.decode(c, ids, precision='fast'))[1]"),
    "Decoder.decode with adapters": (
        "d = decoder(); c = d.new_cache(512, 2); s = d.new_adapters()\n"
        "s.set('layers.0.q_proj', Parameter(ones(4, 64)), Parameter(ones(64, 4)), scale=0.1)",
        "(c.truncate(0, 0), c.truncate(1, 0), d.decode(c, ids[:16], cu_seqlens=[0, 8, 16], adapters=[s, None]))[2]",
    ),
    "KVCache.truncate": ("d = decoder(); c = d.new_cache(512)", "d.decode(c, ids[:1]) is None or c.truncate(0, 0)"),
    "ops": ("", "ops.linear(x, x)"),
    "set_num_threads": ("", "(lc.set_num_threads(3), lin.forward(x), lc.set_num_threads(2))[1]"),
    "set_isa": ("", "(lc.set_isa('portable'), lc.set_isa('auto'), lin.forward(x[:8]))[2]"),
    "growing scratch": ("d = decoder()", "(d.logits(ids[:8]), decoder().logits(ids))[1]"),
}
RUN = """
expected, stop = {call}, False
def loop():
    while not stop: {call}
thread = threading.Thread(target=loop)
thread.start()
def in_child(depth):
    pid = os.fork()
    if pid: return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    signal.alarm(30)
    try:
        for _ in range(2): assert np.array_equal({call}, expected), "other numbers"
        assert lc.get_precision() == "exact"
        ok = 0 if depth == 0 else in_child(depth - 1)
    except BaseException:
        traceback.print_exc()
        ok = 1
    os._exit(ok)
ends = []
for i in range(12):
    time.sleep(0.003 * i)
    ends.append(in_child(i % 2))
stop = True
thread.join()
assert ends == [0] * 12, ends
"""


@pytest.mark.parametrize("name", LOOPS)
def test_forked_in_the_middle_of(name: str, alone: Callable[..., str]) -> None:
    setup, call = LOOPS[name]
    alone(CODE + setup + RUN.format(call=call), seconds=150)


GRADIENTS = """
d = decoder()
d.set_weight("embed_tokens", Parameter(ones(2000, 64) * 0.1, requires_grad=True))
rows = Parameter(ones(4, 64) * 0.1)
d.set_token_rows([1, 2, 3, 4], rows)
A, B = Parameter(ones(4, 64) * 0.1), Parameter(ones(2000, 4) * 0.1)
d.set_adapter("lm_head", A, B, scale=1.0)
mA, mB, m = Parameter(ones(4, 64) * 0.1), Parameter(ones(64, 4) * 0.1), Parameter(ones(64))
d.set_adapter("layers.0.q_proj", mA, mB, scale=1.0, magnitude=m)
KV = d.config["num_key_value_heads"] * d.config["head_dim"] * d.config["num_hidden_layers"] * 2
made_by = [Parameter(ones(*shape) * 0.1) for shape in ((3, 8), (5, 8), (5,), (KV, 5), (KV,))]
d.set_virtual_tokens("prefix", made_by)
trained = [rows, A, B, mA, mB, m, *made_by]
def call():
    for p in trained: p.zero_grad()
    d.forward_backward(ids, [0, 512], ids, ones(512))
    return np.concatenate([p.grad.ravel() for p in trained])
"""


def test_gradients_of_a_child_hold_nothing_of_the_pass_it_was_forked_in(alone: Callable[..., str]) -> None:
    alone(CODE + GRADIENTS + RUN.format(call="call()"), seconds=150)
