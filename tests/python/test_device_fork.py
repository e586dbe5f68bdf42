"""A child forked while a device is in use shares its memory: all of it is refused there, and the parent is unharmed."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

FORK = """
import gc, os, sys, threading
import numpy as np
import lora_c as lc, lora_c.model.opening  # here, or each child would import it
from lora_c import _core
from lora_c._core import AdamW, Decoder, Parameter
MESSAGE = "device fake: expected the process that opened it, got a child of it; open it after the fork"
def ones(*shape): return np.ones(shape, np.float32)
def make(device):
    d = Decoder(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
                head_dim=8, vocab_size=9, max_position_embeddings=64, norm_eps=1e-5, rope_inv_freq=[1.0] * 4, device=device)
    p = Parameter(ones(8, 8) / 8, device=device)
    for name in ("embed_tokens", "lm_head"): d.set_weight(name, np.arange(72, dtype=np.float32).reshape(9, 8) / 72)
    for name in ("norm", "layers.0.input_layernorm", "layers.0.post_attention_layernorm"): d.set_weight(name, ones(8))
    for name in ("q", "k", "v", "o", "gate", "up", "down"): d.set_weight(f"layers.0.{name}_proj", ones(8, 8) / 8)
    d.set_weight("layers.0.q_proj", p)
    return d, p
d, p = make("fake")
opt, cache, ids, cu = AdamW([p]), d.new_cache(64), np.arange(8) % 9, [0, 8]
def step():
    opt.zero_grad()
    loss = d.forward_backward(ids, cu, ids, ones(8))
    return loss, opt.step(lr=1e-2)
x, layer = lc.to_device(ones(2, 8), "fake"), lc.LoRALinear(ones(8, 8), r=2, device="fake")
placed = lc.NF4Tensor.quantize(ones(2, 2)).to("fake")
CALLS = {
    "array": lambda: x.to("cpu"), "to_device": lambda: lc.to_device(ones(2), "fake"), "op": lambda: lc.ops.swiglu(x),
    "in place": lambda: lc.ops.adamw_step(x, x, x, x, step=1, lr=0.1), "layer": lambda: layer.forward(x),
    "new layer": lambda: lc.LoRALinear(ones(8, 8), r=2, device="fake"),
    "weight back": lambda: placed.to("cpu"), "view": lambda: p.view_grad().to("cpu"),
    "placed weight": lambda: lc.to_device(lc.NF4Tensor.quantize(ones(2, 2)), "fake"),
    "read": p.read, "data": lambda: p.data, "read_grad": p.read_grad, "write": lambda: p.write(ones(8, 8)),
    "zero": p.zero_grad,
    "Parameter": lambda: Parameter(ones(3), device="fake"), "block": lambda: Parameter.block([(3,)], device="fake"),
    "AdamW": lambda: AdamW([p]), "step": lambda: opt.step(lr=0.1), "zero_grad": opt.zero_grad, "state": opt.state_dict,
    "load": lambda: opt.load_state_dict({"step": 1, "m": [ones(8, 8)], "v": [ones(8, 8)]}), "Decoder": lambda: make("fake"),
    "logits": lambda: d.logits(ids), "loss": lambda: d.loss(ids, cu, ids, ones(8)),
    "train": lambda: d.forward_backward(ids, cu, ids, ones(8)),
    "hidden": lambda: d.hidden_states(ids, 1), "decode": lambda: d.decode(cache, ids), "cache": lambda: d.new_cache(8),
    "weight": lambda: d.set_weight("norm", ones(8)), "own weight": lambda: d.set_weight("layers.0.k_proj", p),
    "adapter": lambda: d.set_adapter("lm_head", p, p, scale=1.0), "free": d.free_activations,
    "transfers": lambda: _core.transfers("fake"), "report": lambda: _core.memory_report("fake"),
    "memory": lambda: lc.memory_info("fake"), "quantize": lambda: lc.NF4Tensor.quantize(ones(2, 2), device="fake"),
    "peak": lambda: _core.reset_peak_memory("fake"), "model": lambda: lc.load_model("demo", progress=False, device="fake"),
}
def refused(call):
    try: call()
    except lc.DeviceError as error: return str(error) == MESSAGE
    except ValueError as error: return "B: expected" in str(error)  # set_adapter's own, before
    return False
def child(how):
    wrong = [name for name, call in CALLS.items() if not refused(call)]
    here, q = make("cpu")  # the CPU is the child's own
    if not np.isfinite(here.logits(ids)).all(): wrong.append("cpu")
    if wrong: print("not refused:", wrong, file=sys.stderr); os._exit(1)
    if how == "grandchild": sys.exit(in_child("normal"))
    if how == "collected":
        for name in ("d", "p", "opt", "cache", "CALLS"): globals().pop(name)
        gc.collect()
    if how == "at once": os._exit(0)
    sys.exit(0)
def in_child(how):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0: child(how)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
other, other_p = make("cpu")
other_opt = AdamW([other_p])
def cpu_step():
    other_opt.zero_grad()
    loss = other.forward_backward(ids, cu, ids, ones(8))
    return loss, other_opt.step(lr=1e-2)
"""
BETWEEN = """
for how in ("normal", "at once", "collected", "grandchild"):
    assert step() == cpu_step()
    before = _core.transfers("fake")
    assert in_child(how) == 0, how
    assert _core.transfers("fake") == before
    assert step() == cpu_step() and np.array_equal(p.read(), other_p.data)
"""
DURING = """
stop, seen = False, []
def loop():
    while not stop:
        seen.append((step(), cpu_step()))
        Parameter(ones(100), device="fake")
thread = threading.Thread(target=loop)
thread.start()
for i in range(12):
    threading.Event().wait(0.002 * i)
    assert in_child("normal") == 0
stop = True
thread.join()
assert len(seen) > 3 and all(got == expected for got, expected in seen)
assert np.array_equal(p.read(), other_p.data)
"""
AFTER = """
import os
import numpy as np
from lora_c._core import Parameter
pid = os.fork()
p = Parameter(np.ones(3, np.float32), device="fake")  # parent and child open it, each for itself
for _ in range(50):
    p.write(np.full(3, pid != 0, np.float32))
    assert p.read().tolist() == [pid != 0] * 3
if pid: assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
CASES = {"between calls": FORK + BETWEEN, "in the middle of a step": FORK + DURING, "opened after it": AFTER}


@pytest.mark.parametrize("case", CASES)
def test_a_child_is_refused_and_its_parent_unharmed(fake: str, alone: Callable[..., str], case: str) -> None:
    alone(CASES[case], seconds=120, gib=64)
