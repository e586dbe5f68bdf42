"""Every operation of lora_c.ops and its gradient against lora_c.reference, on every instruction-set rung of this machine.

Tolerance: forward errors of float32 sums grow at most like n * 2^-24 * sum|terms|; 3e-5 relative to the largest entry
covers n up to a few hundred with a factor of ten to spare, and a wrong element is off by orders of magnitude more.
"""

import math
import os

import numpy as np
import pytest
from device_ops import OpsOn

import lora_c as lc
from lora_c import _core, ops
from lora_c import reference as ref

SIZES = [1, 2, 3, 7, 16, 17, 31, 64, 65, 127]
DEVICE = os.environ.get("LORA_C_DEVICE", "cpu")
if DEVICE != "cpu":  # what the host computes itself there is the same on every rung
    ops = OpsOn(DEVICE)


@pytest.fixture(params=_core.supported_isas() if DEVICE == "cpu" else [_core.get_isa()], autouse=True)
def isa(request):
    before = _core.get_isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


def rng(*key):
    return np.random.Generator(np.random.Philox(key=[len(key), sum((i + 1) * k for i, k in enumerate(key))]))


def normal(r, *shape):
    return r.standard_normal(shape).astype(np.float32)


def close(got, want, tol=3e-5):
    want = np.asarray(want)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=tol * max(1e-6, np.abs(want).max()))


def not_empty(*arrays):
    """Return the arrays that the device can have: only the CPU's may be empty."""
    return [array for array in arrays if array.size or DEVICE == "cpu"]


@pytest.mark.parametrize("n", SIZES)
def test_rmsnorm(n):
    r = rng(n)
    x, w, dy = normal(r, 5, n), normal(r, n), normal(r, 5, n)
    close(ops.rmsnorm(x, w, eps=1e-5), ref.rmsnorm(x, w, 1e-5))
    dx, dw = ops.rmsnorm_backward(dy, x, w, eps=1e-5)
    want_dx, want_dw = ref.rmsnorm_backward(dy, x, w, 1e-5)
    # dx is a difference of two terms as large as r * dy * w, which cancel for n = 1: the bound is on the terms
    terms = np.abs(dy * w) / np.sqrt(np.mean(np.square(x), axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(dx, want_dx, rtol=0, atol=3e-5 * terms.max())
    close(dw, want_dw)


@pytest.mark.parametrize("n", SIZES)
def test_layernorm_and_the_offset_of_rmsnorm(n):
    r = rng(n, 7)
    x, w, b, dy = normal(r, 5, n), normal(r, n), normal(r, n), normal(r, 5, n)
    close(ops.rmsnorm(x, w, eps=1e-2, weight_offset=1.0), ref.rmsnorm(x, w, 1e-2, 1.0))
    close(ops.layernorm(x, w, b, eps=1e-2), ref.layernorm(x, w, b, 1e-2), 1e-4)
    for got, want in zip(ops.layernorm_backward(dy, x, w, eps=1e-2), ref.layernorm_backward(dy, x, w, 1e-2), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-4 * (1 + np.abs(want).max()))
    dx, dw = ops.rmsnorm_backward(dy, x, w, eps=1e-2, weight_offset=1.0)
    want_dx, want_dw = ref.rmsnorm_backward(dy, x, w, 1e-2, 1.0)
    np.testing.assert_allclose(dx, want_dx, rtol=0, atol=1e-4 * (1 + np.abs(dy * (1 + w)).max()))
    close(dw, want_dw)


@pytest.mark.parametrize("n", SIZES)
def test_geglu(n):
    r = rng(n, 8)
    gate, up, dh = normal(r, 3, n) * 2, normal(r, 3, n), normal(r, 3, n)
    close(ops.geglu(gate, up), ref.geglu(gate, up))
    close(ops.geglu(gate), ref.gelu(gate))
    for got, want in zip(ops.geglu_backward(dh, gate, up), ref.geglu_backward(dh, gate, up), strict=True):
        close(got, want)
    close(ops.geglu_backward(dh, gate), ref.geglu_backward(dh, gate)[0])


@pytest.mark.parametrize("n", SIZES)
def test_swiglu(n):
    r = rng(n, 1)
    gate, up, dh = normal(r, 3, n) * 4, normal(r, 3, n), normal(r, 3, n)
    close(ops.swiglu(gate, up), ref.swiglu(gate, up))
    for got, want in zip(ops.swiglu_backward(dh, gate, up), ref.swiglu_backward(dh, gate, up), strict=True):
        close(got, want)


@pytest.mark.parametrize("n", SIZES)
def test_silu_and_relu_with_and_without_a_gate(n):
    r = rng(n, 9)
    gate, up, dh = normal(r, 3, n) * 4, normal(r, 3, n), normal(r, 3, n)
    close(ops.swiglu(gate), ref.silu(gate))
    close(ops.swiglu_backward(dh, gate), ref.swiglu_backward(dh, gate)[0])
    close(ops.reglu(gate, up), ref.reglu(gate, up))
    close(ops.reglu(gate), ref.relu(gate))
    for got, want in zip(ops.reglu_backward(dh, gate, up), ref.reglu_backward(dh, gate, up), strict=True):
        close(got, want)
    close(ops.reglu_backward(dh, gate), ref.reglu_backward(dh, gate)[0])


@pytest.mark.parametrize("n", SIZES)
def test_scale_columns(n):
    r = rng(n, 10)
    x, dy, factors = normal(r, 2, 40, n), normal(r, 2, 40, n), normal(r, n)
    close(ops.scale_columns(x, factors), ref.scale_columns(x, factors))
    for got, want in zip(ops.scale_columns_backward(dy, x, factors), ref.scale_columns_backward(dy, x, factors), strict=True):
        close(got, want)
    for wrong in not_empty(factors[:-1], factors[None], np.ones(n + 1, np.float32)):
        with pytest.raises(ValueError, match="l: expected"):
            ops.scale_columns(x, wrong)


@pytest.mark.parametrize("half", [1, 4, 7, 16, 32])
def test_rope(half):
    r = rng(half, 2)
    x, positions = normal(r, 9, 3, 2 * half), np.arange(9, dtype=np.int32) * 3
    inv_freq = 10000.0 ** (-np.arange(half) / half)
    close(ops.rope(x, positions, inv_freq), ref.rope(x, positions, inv_freq))
    close(ops.rope_backward(x, positions, inv_freq), ref.rope(x, positions, inv_freq, backward=True))
    part = inv_freq[: (half + 1) // 2]  # only the start of each head turns
    close(ops.rope(x, positions, part), ref.rope(x, positions, part))


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(1, 1, 1), (4, 2, 8), (2, 2, 17), (6, 2, 64)])
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (5, 0.0), (0, 1.5)])
def test_attention(heads, kv_heads, dim, window, cap):
    r = rng(heads, dim, window)
    cu = np.array([0, 1, 18, 90], np.int32)
    q, k, v = normal(r, 90, heads, dim), normal(r, 90, kv_heads, dim), normal(r, 90, kv_heads, dim)
    dout = normal(r, 90, heads, dim)
    options = {"sliding_window": window, "softcap": cap}
    close(ops.attention(q, k, v, cu, **options), ref.attention(q, k, v, cu, **options))
    got = ops.attention_backward(dout, q, k, v, cu, **options)
    want = ref.attention_backward(dout, q, k, v, cu, **options)
    for g, w in zip(got, want, strict=True):
        close(g, w, 1e-4)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", ["float32", "nf4"])
def test_linear(n, kind):
    r = rng(n, 4)
    m, k = (n % 23) + 1, max(1, (n * 5) % 131)
    x, w, dy = normal(r, m, k), normal(r, n, k), normal(r, m, n)
    base = w if kind == "float32" else lc.NF4Tensor.quantize(w)
    dense = w if kind == "float32" else base.dequantize()
    close(ops.linear(x, base), ref.linear(x, dense))
    close(ops.linear_backward(dy, base), dy.astype(np.float64) @ dense.astype(np.float64))


@pytest.mark.parametrize("n", [1, 3, 65])
def test_embedding(n):
    r = rng(n, 5)
    w, ids, dy = normal(r, 11, n), np.array([0, 10, 3, 3], np.int32), normal(r, 4, n)
    close(ops.embedding(ids, w), ref.embedding(ids, w))
    close(ops.embedding_backward(ids, dy, 11), ref.embedding_backward(ids, dy, 11))


@pytest.mark.parametrize(("m", "h", "v"), [(1, 1, 2), (3, 7, 11), (70, 33, 129), (40, 64, 1000)])
def test_cross_entropy(m, h, v):
    r = rng(m, h, v)
    x, w = normal(r, m, h), normal(r, v, h)
    targets = r.integers(0, v, m).astype(np.int32)
    weight = (r.random(m) < 0.6).astype(np.float32)
    weight[0] = 0.5
    loss, dx, dw = ops.cross_entropy(x, w, targets, weight, gradients=True)
    assert math.isclose(loss, ref.linear_cross_entropy(x, w, targets, weight), rel_tol=1e-5, abs_tol=1e-6)
    want_dx, want_dw = ref.linear_cross_entropy_backward(x, w, targets, weight)
    close(dx, want_dx)
    close(dw, want_dw)
    assert math.isclose(ops.cross_entropy(x, w, targets, weight), loss, rel_tol=1e-6)
    loss, dx, dw = ops.cross_entropy(x, w, targets, weight, gradients=True, logit_scale=0.5, logit_softcap=1.5)
    assert math.isclose(loss, ref.linear_cross_entropy(x, w, targets, weight, 0.5, 1.5), rel_tol=1e-5, abs_tol=1e-6)
    want_dx, want_dw = ref.linear_cross_entropy_backward(x, w, targets, weight, 0.5, 1.5)
    close(dx, want_dx)
    close(dw, want_dw)


@pytest.mark.parametrize("kind", ["squared_error", "binary_entropy"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (7, 3), (40, 1)])
def test_values_loss(m, n, kind):
    rng = np.random.default_rng(m + n)
    y, weight = (4 * rng.standard_normal(s).astype(np.float32) for s in ((m, n), (m,)))
    values = rng.random((m, n), np.float32)
    weight[::3] = 0
    loss, dy = ops.values_loss(y, values, weight, kind=kind, gradients=True)
    assert math.isclose(loss, ref.values_loss(y, values, weight, kind), rel_tol=1e-12, abs_tol=1e-15)
    np.testing.assert_allclose(dy, ref.values_loss_backward(y, values, weight, kind), rtol=1e-7, atol=1e-30)
    assert ops.values_loss(y, values, weight, kind=kind) == loss
    np.testing.assert_allclose(ops.values_loss(y, values, weight, kind=kind, gradients=True, grad_scale=0.5)[1], dy / 2)
    with pytest.raises(ValueError, match="kind: expected 'squared_error' or 'binary_entropy', got 'x'"):
        ops.values_loss(y, values, weight, kind="x")
    for wrong in not_empty(values[:, :0], np.zeros((m, n + 1), np.float32)):
        with pytest.raises(ValueError, match="values"):
            ops.values_loss(y, wrong, weight, kind=kind)


@pytest.mark.parametrize("n", SIZES)
def test_adamw_and_sum_of_squares(n):
    r = rng(n, 6)
    p, g, m = normal(r, n), normal(r, n), normal(r, n)
    v = np.abs(normal(r, n))
    want = ref.adamw_step(p, g, m, v, step=3, lr=1e-2, weight_decay=0.1)
    ops.adamw_step(p, g, m, v, step=3, lr=1e-2, weight_decay=0.1)
    for got, expected in zip((p, m, v), want, strict=True):
        close(got, expected)
    assert math.isclose(ops.sum_of_squares(g), ref.global_norm([g]) ** 2, rel_tol=1e-6)
