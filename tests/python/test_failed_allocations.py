"""Every allocation of CPython fails once in turn: a MemoryError each time, never a crash, a wrong result or a leak."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("_testcapi", reason="needs CPython's own test module")

CODE = """
import gc, sys, _testcapi, numpy as np, ml_dtypes, lora_c as lc
from lora_c import ops
from lora_c._core import AdamW, Decoder, GGMLTensor, NF4Tensor, Parameter
def ones(*shape): return np.ones(shape, np.float32)
bf16 = np.ones((4, 32), ml_dtypes.bfloat16)
w, x, ids = ones(4, 32), ones(2, 32), [0, 1]
nf4, q8, layer = NF4Tensor.quantize(w), GGMLTensor.quantize(w), lc.LoRALinear(w, r=2)
p = Parameter(ones(3)); o = AdamW([p]); state = o.state_dict()
sizes = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
             head_dim=4, vocab_size=4, max_position_embeddings=16, norm_eps=1e-5)
d = Decoder(**sizes, rope_inv_freq=[1.0, 0.5], tie_word_embeddings=True)
for n, s in dict(embed_tokens=(4, 8), norm=(8,)).items(): d.set_weight(n, ones(*s))
for n, s in dict(input_layernorm=(8,), post_attention_layernorm=(8,), q_proj=(8, 8), k_proj=(4, 8), v_proj=(4, 8),
                 o_proj=(8, 8), gate_proj=(12, 8), up_proj=(12, 8), down_proj=(8, 12)).items():
    d.set_weight("layers.0." + n, ones(*s))
A, B, bias = Parameter(ones(2, 8)), Parameter(ones(8, 2)), ones(8).astype(ml_dtypes.bfloat16)
blocks, codes, absmax, l = np.zeros(64, np.uint8), np.zeros(32, np.uint8), ones(1), ones(2)
embed = ones(4, 8)
calls = {calls}
failed = 0
for name, call in calls.items():
    call()
    live = lc.memory_report()["total"]["live"]
    for start in range(1, 400):
        error = None
        _testcapi.set_nomemory(start, start + 1)
        try: call()
        except MemoryError as e: error = e
        except BaseException as e: error = e
        finally: _testcapi.remove_mem_hooks()
        if error is None: break
        assert isinstance(error, (MemoryError, ImportError)), (name, start, repr(error))
        del error
    failed += start - 1
    gc.collect()
    assert lc.memory_report()["total"]["live"] <= live + 4096, name
    call()
assert failed > 5 * len(calls), failed
"""
CALLS = """dict(
    linear=lambda: layer.forward(x),
    out=lambda: layer.forward(x, out=np.empty((2, 4), np.float32)),
    call=lambda: layer(x, training=True, step=1),
    backward=lambda: layer.backward(ones(2, 4), x),
    merge=lambda: layer.merge(sign=1.0),
    parameters=layer.parameters,
    repr=lambda: repr(layer),
    LoRALinear=lambda: lc.LoRALinear(w, r=2, lora_alpha=1.0, bias=ones(4), A=ones(2, 32), use_dora=True),
    bf16=lambda: lc.LoRALinear(bf16, r=2),
    Parameter=lambda: Parameter(l, name="x"),
    block=lambda: Parameter.block([(2, 3), (4,)], names=["x", "y"]),
    buffer=lambda: np.asarray(lc.LoRALinear(w, r=2)),
    data=lambda: (p.data, p.grad, p.shape, repr(p), memoryview(p)),
    zero=p.zero_grad,
    AdamW=lambda: AdamW([p], lr=0.1, no_decay=[p]),
    step=lambda: o.step(lr=0.0),
    state=o.state_dict,
    load=lambda: o.load_state_dict(state),
    quantize=lambda: NF4Tensor.quantize(w),
    half=lambda: NF4Tensor.quantize(bf16),
    dequantize=lambda: nf4.dequantize(dtype="float16"),
    parts=lambda: NF4Tensor.from_parts(codes, (1, 64), absmax=absmax, lut=ones(16)),
    codes=lambda: (nf4.codes, nf4.lut, nf4.shape, repr(nf4)),
    q8=lambda: GGMLTensor.quantize(w),
    q8d=lambda: q8.dequantize(),
    blocks=lambda: GGMLTensor.from_blocks(blocks, (1, 32), "F16").blocks,
    embedding=lambda: ops.embedding(ids, w),
    rope=lambda: ops.rope(ones(2, 1, 4), ids, [1.0, 0.5], scale=1.0),
    xent=lambda: ops.cross_entropy(x, w, ids, l, gradients=True),
    attention=lambda: ops.attention_backward(*[ones(2, 1, 8)] * 4, [0, 2]),
    norm=lambda: ops.layernorm_backward(x, x, ones(32)),
    Decoder=lambda: Decoder(**sizes, rope_inv_freq=[1.0], layer_rope=[0]),
    logits=lambda: d.logits(ids),
    hidden_states=lambda: d.hidden_states(ids, 1),
    train=lambda: d.forward_backward(ids, [0, 2], ids, l, grad_scale=1.0),
    loss=lambda: d.loss(ids, [0, 2], ids, l),
    decode=lambda: d.decode(d.new_cache(4), ids, sequences=[0]),
    set=lambda: d.set_weight("embed_tokens", embed),
    bias=lambda: d.set_weight("layers.0.q_proj.bias", bias),
    adapter=lambda: d.set_adapter("layers.0.q_proj", A, B, scale=1.0, dropout=0.0),
    config=lambda: (d.config, repr(d), d.precision),
    report=lambda: (lc.memory_report(), lc.get_isa(), lc.supported_isas()),
)"""


def test_failed_allocations(alone: Callable[..., str]) -> None:
    alone(CODE.replace("{calls}", CALLS), seconds=200)


ON_A_DEVICE = """dict(
    set=lambda: d.set_weight("embed_tokens", embed),
    norm=lambda: d.set_weight("norm", ones(8)),
    logits=lambda: d.logits(ids),
    decode=lambda: d.decode(d.new_cache(4), ids, sequences=[0]),
    Parameter=lambda: Parameter(l, device="fake"),
    read=lambda: Parameter(l, device="fake").data,
)"""


def test_failed_allocations_on_a_device(alone: Callable[..., str], fake: str) -> None:
    code = CODE.replace("d = Decoder(**sizes,", f"d = Decoder(**sizes, device='{fake}',").replace("failed > 5", "failed >= 3")
    alone(code.replace("{calls}", ON_A_DEVICE), seconds=200, gib=24)  # that device reserves 8 GiB of addresses, not memory
