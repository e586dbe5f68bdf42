"""The mathematics of every operation in float64 NumPy: the oracle of the tests and the documentation of the formulas.

Every function computes in float64 whatever it is given, keeps nothing, and is written to be read. Letters: M tokens,
K in_features, N out_features, R rank, H hidden size, D head_dim, V vocabulary, G block size. ``d<name>`` is the gradient
of the loss with respect to ``<name>``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]


def _f64(x: ArrayLike) -> F64:
    return np.asarray(x, dtype=np.float64)


# --- NF4 and the 4-bit types beside it (QLoRA, arXiv:2305.14314, section 3) ---------------------------------------


def four_bit_values(quant_type: str) -> NDArray[np.float32]:
    """The 16 values by code of "fp4", "fp4_e2m1" or "int4"; those of NF4 are published constants (`NF4Tensor.lut`)."""
    if quant_type == "int4":  # -7 to 7, over 7; code 15 is never made
        return (np.minimum(np.arange(16) - 7, 7) / 7).astype(np.float32)
    # Three bits of a float, bit 3 the sign: bitsandbytes' own, and E2M1.
    magnitudes = {"fp4": [0, 0.0625, 8, 12, 4, 6, 2, 3], "fp4_e2m1": [0, 0.5, 1, 1.5, 2, 3, 4, 6]}[quant_type]
    positive = np.array(magnitudes) / max(magnitudes)
    return np.concatenate([positive, -positive]).astype(np.float32)


def nf4_quantize(
    w: ArrayLike, lut: ArrayLike, block_size: int = 64, unused: tuple[int, ...] = ()
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes (one per element, not packed) and absmax (one per block) of the flattened matrix, for any 16 values.

    The scaled value x * (1/absmax) is float32, as in bitsandbytes; a value on the midpoint of two values takes the lower.
    unused: codes that repeat a value and are never made, 8 of "fp4_e2m1" and 15 of "int4".
    """
    x = np.asarray(w, np.float32).reshape(-1)
    values = np.asarray(lut, np.float32)
    order = np.array([code for code in np.argsort(values, kind="stable") if code not in unused], np.uint8)
    table = values[order]
    midpoints = ((table[1:].astype(np.float64) + table[:-1]) / 2).astype(np.float32)
    n_blocks = -(-x.size // block_size)
    codes = np.empty(x.size, np.uint8)
    absmax = np.empty(n_blocks, np.float32)
    for b in range(n_blocks):
        block = x[b * block_size : (b + 1) * block_size]
        absmax[b] = np.abs(block).max()
        inverse = np.float32(1) / np.maximum(absmax[b], np.float32(1e-38))
        codes[b * block_size : (b + 1) * block_size] = order[np.searchsorted(midpoints, block * inverse, side="left")]
    return codes, absmax


def nf4_dequantize(codes: ArrayLike, absmax: ArrayLike, lut: ArrayLike, block_size: int = 64) -> NDArray[np.float32]:
    """lut[code] * absmax[block] in float32."""
    c = np.asarray(codes)
    scales = np.repeat(np.asarray(absmax, np.float32), block_size)[: c.size]
    return np.asarray(lut, np.float32)[c] * scales


def q8_0_quantize(w: ArrayLike) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Codes and scales of GGML's Q8_0: blocks of 32 weights, d = max |x| / 127, codes x / d rounded half away from zero.

    In float32, as ggml's reference does: x * (1/d), and d is stored in float16 only afterwards.
    """
    x = np.asarray(w, np.float32).reshape(-1, 32)
    d = np.abs(x).max(axis=1) / np.float32(127)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d > 0)
    y = x * inverse[:, None]
    rounded = np.floor(np.abs(y)) + (np.abs(y) - np.floor(np.abs(y)) >= 0.5)
    return (np.sign(y) * rounded).astype(np.int8).reshape(-1), d.astype(np.float16)


def q8_0_dequantize(codes: ArrayLike, scales: ArrayLike) -> NDArray[np.float32]:
    """d * code in float32."""
    return np.asarray(codes, np.float32) * np.repeat(np.asarray(scales, np.float32), 32)


# --- linear layers ------------------------------------------------------------------------------------------------


def linear(x: ArrayLike, w: ArrayLike, bias: ArrayLike | None = None) -> F64:
    """y[M,N] = x[M,K] · w[N,K]ᵀ + bias."""
    y = _f64(x) @ _f64(w).T
    return y if bias is None else y + _f64(bias)


def lora_linear(x: ArrayLike, w: ArrayLike, a: ArrayLike, b: ArrayLike, scale: float, bias: ArrayLike | None = None) -> F64:
    """y = x Wᵀ + s (x Aᵀ) Bᵀ, A (R, K), B (N, R).

    Source
    ------
    LoRA, arXiv:2106.09685, eq. 3.
    """
    return linear(x, w, bias) + scale * (_f64(x) @ _f64(a).T) @ _f64(b).T


def lora_linear_backward(
    dy: ArrayLike, x: ArrayLike, w: ArrayLike, a: ArrayLike, b: ArrayLike, scale: float
) -> tuple[F64, F64, F64]:
    """(dx, dA, dB) = (dy W + s (dy B) A,  s (dy B)ᵀ x,  s dyᵀ (x Aᵀ))."""
    dy, x, w, a, b = _f64(dy), _f64(x), _f64(w), _f64(a), _f64(b)
    dt = scale * dy @ b
    return dy @ w + dt @ a, dt.T @ x, scale * dy.T @ (x @ a.T)


def dora_norm(w: ArrayLike, a: ArrayLike, b: ArrayLike, scale: float) -> F64:
    """Row lengths ||W + s B A|| (N,).

    Source
    ------
    DoRA, arXiv:2402.09353, eq. 5, with rows for the paper's columns.
    """
    return np.linalg.norm(_f64(w) + scale * _f64(b) @ _f64(a), axis=1)


def dora_linear(
    x: ArrayLike, w: ArrayLike, a: ArrayLike, b: ArrayLike, scale: float, magnitude: ArrayLike, norm: ArrayLike,
    bias: ArrayLike | None = None, mask: ArrayLike = 1.0,
) -> F64:  # fmt: skip
    """y = W x + (g - 1) W d + g s B A d + bias with d = mask * x and g = magnitude / norm.

    mask (M, K) is the dropout mask over (1 - p): PEFT drops the input of everything that DoRA adds to W x.
    """
    g = _f64(magnitude) / _f64(norm)
    dropped = _f64(x) * _f64(mask)
    return linear(x, w, bias) + (g - 1) * linear(dropped, w) + g * (scale * (dropped @ _f64(a).T) @ _f64(b).T)


def dora_linear_backward(
    dy: ArrayLike, x: ArrayLike, w: ArrayLike, a: ArrayLike, b: ArrayLike, scale: float, magnitude: ArrayLike,
    norm: ArrayLike, mask: ArrayLike = 1.0,
) -> tuple[F64, F64, F64, F64]:  # fmt: skip
    """(dx, dA, dB, dmagnitude), the norm held constant (DoRA, section 4.3).   dz = g * dy is what reaches W + s B A."""
    dy, x, w, a, b, norm = _f64(dy), _f64(x), _f64(w), _f64(a), _f64(b), _f64(norm)
    dropped = x * _f64(mask)
    dz = dy * (_f64(magnitude) / norm)
    dt = scale * dz @ b
    dx = dy @ w + _f64(mask) * ((dz - dy) @ w + dt @ a)
    z = dropped @ w.T + scale * (dropped @ a.T) @ b.T
    return dx, dt.T @ dropped, scale * dz.T @ (dropped @ a.T), (dy * z).sum(axis=0) / norm


# --- normalisation, positions, MLP --------------------------------------------------------------------------------


def rmsnorm(x: ArrayLike, weight: ArrayLike, eps: float, weight_offset: float = 0.0) -> F64:
    """x / sqrt(mean(x²) + eps) * (weight_offset + weight).

    Source
    ------
    arXiv:1910.07467, eq. 4; Gemma's offset is 1.
    """
    x = _f64(x)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * (weight_offset + _f64(weight))


def rmsnorm_backward(
    dy: ArrayLike, x: ArrayLike, weight: ArrayLike, eps: float, weight_offset: float = 0.0
) -> tuple[F64, F64]:  # fmt: skip
    """(dx, dweight). With r = 1/sqrt(mean(x²)+eps) and g = dy * (weight_offset + weight):  dx = r g - r³ x mean(g x)."""
    dy, x = _f64(dy), _f64(x)
    r = 1.0 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    g = dy * (weight_offset + _f64(weight))
    dx = r * g - r**3 * x * np.mean(g * x, axis=-1, keepdims=True)
    return dx, (dy * x * r).reshape(-1, x.shape[-1]).sum(axis=0)


def layernorm(x: ArrayLike, weight: ArrayLike, bias: ArrayLike, eps: float) -> F64:
    """(x - mean) / sqrt(var + eps) * weight + bias.

    Source
    ------
    arXiv:1607.06450, eq. 4.
    """
    x = _f64(x)
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * _f64(weight) + _f64(bias)


def layernorm_backward(dy: ArrayLike, x: ArrayLike, weight: ArrayLike, eps: float) -> tuple[F64, F64, F64]:
    """(dx, dweight, dbias). With z the normed x and g = dy * weight:  dx = r (g - mean(g) - z mean(g z))."""
    dy, x = _f64(dy), _f64(x)
    x = x - x.mean(axis=-1, keepdims=True)
    r = 1.0 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    z, g = x * r, dy * _f64(weight)
    dx = r * (g - g.mean(axis=-1, keepdims=True) - z * np.mean(g * z, axis=-1, keepdims=True))
    return dx, (dy * z).reshape(-1, x.shape[-1]).sum(axis=0), dy.reshape(-1, x.shape[-1]).sum(axis=0)


def rope(x: ArrayLike, positions: ArrayLike, inv_freq: ArrayLike, scale: float = 1.0, backward: bool = False) -> F64:
    """Rotate the pairs (i, i + n) of x (M, heads, D), n = len(inv_freq), by positions[m] * inv_freq[i].

    Elements from 2 n on stay as they are (partial rotation).

    Source
    ------
    RoFormer, arXiv:2104.09864, eq. 34, with the half-split pairing of Hugging Face folders.
    """
    x = _f64(x)
    angle = _f64(positions)[:, None] * _f64(inv_freq)[None, :]
    cos, sin = scale * np.cos(angle)[:, None, :], scale * np.sin(angle)[:, None, :]
    sin = -sin if backward else sin
    n = cos.shape[-1]
    x1, x2, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], axis=-1)


def silu(x: ArrayLike) -> F64:
    x = _f64(x)
    return x / (1.0 + np.exp(-x))


def swiglu(gate: ArrayLike, up: ArrayLike = 1.0) -> F64:
    """silu(gate) * up.

    Source
    ------
    arXiv:2002.05202.
    """
    return silu(gate) * _f64(up)


def swiglu_backward(dh: ArrayLike, gate: ArrayLike, up: ArrayLike = 1.0) -> tuple[F64, F64]:
    """(dgate, dup): silu'(g) = σ(g) (1 + g (1 - σ(g)))."""
    dh, gate, up = _f64(dh), _f64(gate), _f64(up)
    sigma = 1.0 / (1.0 + np.exp(-gate))
    return dh * up * sigma * (1.0 + gate * (1.0 - sigma)), dh * gate * sigma


_GELU_K = math.sqrt(2.0 / math.pi)


def gelu(x: ArrayLike) -> F64:
    """x / 2 (1 + tanh(k (x + 0.044715 x³))), k = sqrt(2/π).

    Source
    ------
    GELU, arXiv:1606.08415, section 2.
    """
    x = _f64(x)
    return 0.5 * x * (1.0 + np.tanh(_GELU_K * (x + 0.044715 * x**3)))


def geglu(gate: ArrayLike, up: ArrayLike = 1.0) -> F64:
    """gelu(gate) * up.

    Source
    ------
    arXiv:2002.05202.
    """
    return gelu(gate) * _f64(up)


def geglu_backward(dh: ArrayLike, gate: ArrayLike, up: ArrayLike = 1.0) -> tuple[F64, F64]:
    """(dgate, dup): gelu'(g) = (1 + t)/2 + g/2 (1 - t²) k (1 + 3 · 0.044715 g²) with t the tanh."""
    dh, gate = _f64(dh), _f64(gate)
    t = np.tanh(_GELU_K * (gate + 0.044715 * gate**3))
    slope = 0.5 * (1.0 + t) + 0.5 * gate * (1.0 - t * t) * _GELU_K * (1.0 + 3 * 0.044715 * gate**2)
    return dh * _f64(up) * slope, dh * gelu(gate)


def relu(x: ArrayLike) -> F64:
    """max(x, 0)."""
    return np.maximum(_f64(x), 0.0)


def reglu(gate: ArrayLike, up: ArrayLike = 1.0) -> F64:
    """relu(gate) * up.

    Source
    ------
    arXiv:2002.05202.
    """
    return relu(gate) * _f64(up)


def reglu_backward(dh: ArrayLike, gate: ArrayLike, up: ArrayLike = 1.0) -> tuple[F64, F64]:
    """(dgate, dup): the slope is 1 where gate > 0, else 0."""
    dh, gate = _f64(dh), _f64(gate)
    return np.where(gate > 0, dh * _f64(up), 0.0), dh * relu(gate)


def scale_columns(x: ArrayLike, factors: ArrayLike) -> F64:
    """x * factors, column by column.

    Source
    ------
    IA3, arXiv:2205.05638, eq. 1.
    """
    return _f64(x) * _f64(factors)


def scale_columns_backward(dy: ArrayLike, x: ArrayLike, factors: ArrayLike) -> tuple[F64, F64]:
    """(dx, dfactors): dy * factors, and the sum of dy * x over the rows."""
    dy, x = _f64(dy), _f64(x)
    return dy * _f64(factors), (dy * x).reshape(-1, x.shape[-1]).sum(0)


_ACTIVATIONS = {"silu": (silu, swiglu_backward), "gelu_tanh": (gelu, geglu_backward), "relu": (relu, reglu_backward)}


def bottleneck(
    h: ArrayLike, down: ArrayLike, down_bias: ArrayLike, up: ArrayLike, up_bias: ArrayLike, scale: float, activation: str
) -> F64:  # fmt: skip
    """h + scale (up activation(down h + down_bias) + up_bias).

    Source
    ------
    Houlsby et al., arXiv:1902.00751, section 2.1.
    """
    inside = _ACTIVATIONS[activation][0](linear(h, down, down_bias))
    return _f64(h) + scale * linear(inside, up, up_bias)


def bottleneck_backward(
    dy: ArrayLike, h: ArrayLike, down: ArrayLike, down_bias: ArrayLike, up: ArrayLike, up_bias: ArrayLike, scale: float,
    activation: str,
) -> tuple[F64, F64, F64, F64, F64]:  # fmt: skip
    """(dh, ddown, ddown_bias, dup, dup_bias) for rows of h."""
    forward, backward = _ACTIVATIONS[activation]
    before, dupdate = linear(h, down, down_bias), scale * _f64(dy)
    dbefore = backward(dupdate @ _f64(up), before)[0]
    dh = _f64(dy) + dbefore @ _f64(down)
    return dh, dbefore.T @ _f64(h), dbefore.sum(0), dupdate.T @ forward(before), dupdate.sum(0)


def softcap(x: ArrayLike, cap: float) -> F64:
    """cap * tanh(x / cap); cap 0: x.

    Source
    ------
    Gemma 2, arXiv:2408.00118, section 2.
    """
    x = _f64(x)
    return cap * np.tanh(x / cap) if cap else x


def softcap_slope(y: ArrayLike, cap: float) -> F64:
    """The derivative of softcap, from its result: 1 - (y / cap)²."""
    y = _f64(y)
    return 1.0 - (y / cap) ** 2 if cap else np.ones_like(y)


# --- attention ----------------------------------------------------------------------------------------------------


def _attention_probabilities(q: F64, k: F64, scale: float, window: int, cap: float) -> tuple[F64, F64]:
    """softmax(softcap(scale q kᵀ)) of one head, causal, and the slope of the softcap.

    Query i of n sees keys up to len(k) - n + i.
    """
    scores = softcap(scale * q @ k.T, cap)
    slope = softcap_slope(scores, cap)
    query = np.arange(len(q))[:, None] + len(k) - len(q)
    key = np.arange(len(k))[None, :]
    hidden = key > query
    if window:
        hidden |= key <= query - window
    scores = np.where(hidden, -np.inf, scores)
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True), slope


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    cu_seqlens: ArrayLike,
    scale: float | None = None,
    sliding_window: int = 0,
    softcap: float = 0.0,
) -> F64:
    """Causal grouped-query attention over packed segments. q (M, heads, D), k and v (M, kv_heads, D) -> (M, heads, D).

    Source
    ------
    Attention Is All You Need, arXiv:1706.03762, eq. 1; grouped queries, arXiv:2305.13245.
    """
    q, k, v = _f64(q), _f64(k), _f64(v)
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    group = q.shape[1] // k.shape[1]
    out = np.empty_like(q)
    cu = np.asarray(cu_seqlens)
    for begin, end in zip(cu[:-1], cu[1:], strict=True):
        for h in range(q.shape[1]):
            p, _ = _attention_probabilities(q[begin:end, h], k[begin:end, h // group], scale, sliding_window, softcap)
            out[begin:end, h] = p @ v[begin:end, h // group]
    return out


def attention_backward(
    dout: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    cu_seqlens: ArrayLike,
    scale: float | None = None,
    sliding_window: int = 0,
    softcap: float = 0.0,
) -> tuple[F64, F64, F64]:
    """(dq, dk, dv). With P the probabilities: dV = Pᵀ dO, dP = dO Vᵀ, dS = P * (dP - rowsum(dP * P)) * softcap's slope."""
    dout, q, k, v = _f64(dout), _f64(q), _f64(k), _f64(v)
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    group = q.shape[1] // k.shape[1]
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    cu = np.asarray(cu_seqlens)
    for begin, end in zip(cu[:-1], cu[1:], strict=True):
        for h in range(q.shape[1]):
            s, g = slice(begin, end), h // group
            p, slope = _attention_probabilities(q[s, h], k[s, g], scale, sliding_window, softcap)
            dv[s, g] += p.T @ dout[s, h]
            dp = dout[s, h] @ v[s, g].T
            ds = p * (dp - (dp * p).sum(axis=1, keepdims=True)) * slope
            dq[s, h] = scale * ds @ k[s, g]
            dk[s, g] += scale * ds.T @ q[s, h]
    return dq, dk, dv


# --- embedding, loss ----------------------------------------------------------------------------------------------


def embedding(ids: ArrayLike, w: ArrayLike) -> F64:
    """w[ids]."""
    return _f64(w)[np.asarray(ids)]


def embedding_backward(ids: ArrayLike, dy: ArrayLike, vocab_size: int) -> F64:
    """dw[v] = sum of dy[m] over the tokens m with ids[m] == v."""
    dy = _f64(dy)
    dw = np.zeros((vocab_size, dy.shape[-1]))
    np.add.at(dw, np.asarray(ids), dy)
    return dw


def linear_cross_entropy(
    x: ArrayLike, w: ArrayLike, targets: ArrayLike, loss_weight: ArrayLike, scale: float = 1.0, cap: float = 0.0
) -> float:
    """sum over m of loss_weight[m] * (logsumexp(logits[m]) - logits[m, targets[m]]), logits = softcap(scale x Wᵀ)."""
    logits = softcap(scale * _f64(x) @ _f64(w).T, cap)
    top = logits.max(axis=1, keepdims=True)
    lse = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    rows = np.arange(len(logits))
    return float((_f64(loss_weight) * (lse - logits[rows, np.asarray(targets)])).sum())


def linear_cross_entropy_backward(
    x: ArrayLike, w: ArrayLike, targets: ArrayLike, loss_weight: ArrayLike, scale: float = 1.0, cap: float = 0.0
) -> tuple[F64, F64]:
    """(dx, dw): dlogits = loss_weight * (softmax - onehot), then scale times the slope of the softcap."""
    x, w = _f64(x), _f64(w)
    logits = softcap(scale * x @ w.T, cap)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(p)), np.asarray(targets)] -= 1.0
    p *= _f64(loss_weight)[:, None] * scale * softcap_slope(logits, cap)
    return p @ w, p.T @ x


def values_loss(y: ArrayLike, values: ArrayLike, loss_weight: ArrayLike, kind: str) -> float:
    """sum over m of loss_weight[m] * the mean over n of (y - v)², or of -v log s(y) - (1 - v) log(1 - s(y))."""
    y, v = _f64(y), _f64(values)
    each = (y - v) ** 2 if kind == "squared_error" else np.logaddexp(0, y) - y * v
    return float((_f64(loss_weight) * each.mean(axis=1)).sum())


def values_loss_backward(y: ArrayLike, values: ArrayLike, loss_weight: ArrayLike, kind: str) -> F64:
    """dy = loss_weight / N times 2 (y - v), or s(y) - v."""
    y, v = _f64(y), _f64(values)
    slope = 2 * (y - v) if kind == "squared_error" else np.exp(-np.logaddexp(0, -y)) - v
    return _f64(loss_weight)[:, None] / y.shape[1] * slope


# --- optimizer ----------------------------------------------------------------------------------------------------


def adamw_step(
    p: ArrayLike,
    g: ArrayLike,
    m: ArrayLike,
    v: ArrayLike,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[F64, F64, F64]:
    """(p, m, v) after one step; decay before the update.

    Source
    ------
    AdamW, arXiv:1711.05101, algorithm 2.
    """
    p, g, m, v = _f64(p), _f64(g), _f64(m), _f64(v)
    p = p * (1.0 - lr * weight_decay)
    m = beta1 * m + (1.0 - beta1) * g
    v = beta2 * v + (1.0 - beta2) * g * g
    mhat, vhat = m / (1.0 - beta1**step), v / (1.0 - beta2**step)
    return p - lr * mhat / (np.sqrt(vhat) + eps), m, v


def dynamic_map(signed: bool = True) -> NDArray[np.float32]:
    """The 256 values of the 8-bit dynamic map, each step in float32.

    Source
    ------
    8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861, section 2.1.
    """
    one, tenth = np.float32(1), np.float32(0.1)
    values = []
    for i in range(7):
        n = 2**i if signed else 2 ** (i + 1)
        step = (one - tenth) / np.float32(n)
        below = [tenth + np.float32(j) * step for j in range((n + 1) // 2)]
        edges = [*below, *(one - np.float32(n - j) * step for j in range((n + 1) // 2, n + 1))]
        power = np.float32(10.0 ** (i - 6))
        values += [(a + b) / np.float32(2) * power for a, b in zip(edges, edges[1:], strict=False)]
    negative = [-v for v in values] if signed else []
    return np.sort(np.array([*negative, 0, *values, 1], np.float32))


def dynamic_encode(x: ArrayLike, code: ArrayLike, block_size: int = 256) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes of the nearest values, and the largest magnitude of each block; of two as near (in float32) the lower.

    Source
    ------
    8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861, section 2.
    """
    values, code = np.asarray(x, np.float32).reshape(-1), np.asarray(code, np.float32)
    codes, scales = np.zeros(values.shape, np.uint8), []
    for begin in range(0, len(values), block_size):
        block = values[begin : begin + block_size]
        top = np.abs(block).max()
        scaled = np.clip(block * (np.float32(1) / top), -1, 1) if top > 0 else np.zeros_like(block)
        codes[begin : begin + block_size] = np.abs(scaled[:, None] - code).argmin(1)
        scales.append(top)
    return codes.reshape(np.shape(x)), np.array(scales, np.float32)


def dynamic_decode(codes: ArrayLike, absmax: ArrayLike, code: ArrayLike, block_size: int = 256) -> NDArray[np.float32]:
    """What codes stand for, in float32."""
    flat = np.asarray(code, np.float32)[np.asarray(codes).reshape(-1)]
    scales = np.repeat(np.asarray(absmax, np.float32), block_size)[: flat.size]
    return (flat * scales).reshape(np.shape(codes))


def sgd_step(
    p: ArrayLike,
    g: ArrayLike,
    m: ArrayLike,
    *,
    step: int,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> tuple[F64, F64]:
    """(p, m) after one step; the first gradient begins m.

    Source
    ------
    Sutskever et al., On the importance of initialization and momentum in deep learning, ICML 2013, section 2; as PyTorch.
    """
    p, g, m = _f64(p), _f64(g), _f64(m)
    g = g + weight_decay * p
    if momentum == 0:
        return p - lr * g, m
    m = g if step == 1 else momentum * m + (1.0 - dampening) * g
    return p - lr * (g + momentum * m if nesterov else m), m


def lion_step(
    p: ArrayLike, g: ArrayLike, m: ArrayLike, *, lr: float, beta1: float = 0.9, beta2: float = 0.99, weight_decay: float = 0.0
) -> tuple[F64, F64]:
    """(p, m) after one step.

    Source
    ------
    Lion, arXiv:2302.06675, algorithm 2.
    """
    p, g, m = _f64(p), _f64(g), _f64(m)
    update = np.sign(beta1 * m + (1.0 - beta1) * g)
    return p * (1.0 - lr * weight_decay) - lr * update, beta2 * m + (1.0 - beta2) * g


def adafactor_step(
    p: ArrayLike,
    g: ArrayLike,
    state: dict[str, Any],
    *,
    step: int,
    lr: float | None = None,
    eps: tuple[float, float] = (1e-30, 1e-3),
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    beta1: float | None = None,
    weight_decay: float = 0.0,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
) -> tuple[F64, dict[str, Any]]:
    """p and the state (row and col; of what is no matrix col alone; m with beta1) after one step.

    Source
    ------
    Adafactor, arXiv:1804.04235, algorithms 4 to 6; as transformers' class has it.
    """
    p, g = _f64(p), _f64(g)
    beta2 = 1.0 - step**decay_rate
    squares = g * g + eps[0]
    out = {"col": beta2 * _f64(state["col"]) + (1.0 - beta2) * (squares.mean(0) if p.ndim == 2 else squares)}
    second = out["col"]
    if p.ndim == 2:
        out["row"] = beta2 * _f64(state["row"]) + (1.0 - beta2) * squares.mean(1)
        second = np.outer(out["row"] / out["row"].mean(), out["col"])
    update = g / np.sqrt(second)
    update = update / max(1.0, float(np.sqrt((update**2).mean())) / clip_threshold)
    rate = min(1e-6 * step if warmup_init else 1e-2, 1.0 / math.sqrt(step)) if relative_step else float(lr or 0.0)
    if scale_parameter:
        rate *= max(eps[1], float(np.sqrt((p**2).mean())))
    update = rate * update
    if beta1 is not None:
        update = out["m"] = beta1 * _f64(state["m"]) + (1.0 - beta1) * update
    return p - weight_decay * rate * p - update, out


def newton_schulz(
    x: ArrayLike, *, steps: int = 5, coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315), eps: float = 1e-7
) -> F64:
    """A matrix with its singular values brought near 1.

    Source
    ------
    Muon, kellerjordan.github.io/posts/muon (2024).
    """
    a, b, c = coefficients
    x = _f64(x)
    is_tall = x.shape[0] > x.shape[1]
    x = (x.T if is_tall else x) / max(float(np.sqrt((x**2).sum())), eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


def muon_step(
    p: ArrayLike,
    g: ArrayLike,
    m: ArrayLike,
    *,
    lr: float,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.1,
    ns_steps: int = 5,
    adjust_lr_fn: str = "original",
) -> tuple[F64, F64]:
    """(p, m) of a matrix after one step.

    Source
    ------
    Muon, kellerjordan.github.io/posts/muon (2024), as PyTorch has it; arXiv:2502.16982, section 2.
    """
    p, g, m = _f64(p), _f64(g), _f64(m)
    m = momentum * m + (1.0 - momentum) * g
    update = newton_schulz(momentum * m + (1.0 - momentum) * g if nesterov else m, steps=ns_steps)
    rows, cols = p.shape
    ratio = 0.2 * math.sqrt(max(rows, cols)) if adjust_lr_fn == "match_rms_adamw" else math.sqrt(max(1.0, rows / cols))
    return p * (1.0 - lr * weight_decay) - lr * ratio * update, m


def philox_uniform(seed: int, stream: int, n: int) -> F64:
    """The first n numbers in [0, 1) of a stream, of 24 bits each: word i % 4 of counter i // 4.

    Source
    ------
    Philox4x32-10; Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
    """
    mask, counter = np.uint64(0xFFFFFFFF), np.arange(-(-n // 4), dtype=np.uint64)
    c = [counter & mask, counter >> np.uint64(32)]
    c += [np.full_like(counter, stream & 0xFFFFFFFF), np.full_like(counter, stream >> 32 & 0xFFFFFFFF)]
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        high0, high1 = p0 >> np.uint64(32), p1 >> np.uint64(32)
        c = [high1 ^ c[1] ^ np.uint64(k0), p1 & mask, high0 ^ c[3] ^ np.uint64(k1), p0 & mask]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return (np.stack(c, 1).reshape(-1)[:n] >> np.uint64(8)).astype(np.float64) * 2.0**-24


def neftune_noise(alpha: float, seed: int, stream: int, cu_seqlens: ArrayLike, hidden_size: int) -> F64:
    """(M, hidden_size): what is added to the embedded tokens of a packed batch. A step's stream is step * 2**20 + 0xfffff.

    Source
    ------
    NEFTune, arXiv:2310.05914, algorithm 1.
    """
    lengths = np.diff(np.asarray(cu_seqlens))
    scale = alpha / np.sqrt(np.repeat(lengths, lengths) * float(hidden_size))
    drawn = philox_uniform(seed, stream, int(lengths.sum()) * hidden_size).reshape(-1, hidden_size)
    return scale[:, None] * (2.0 * drawn - 1.0)


def global_norm(grads: list[Any]) -> float:
    """sqrt of the sum of squares over all gradients."""
    return math.sqrt(sum(float((_f64(g) ** 2).sum()) for g in grads))


# --- the decoder --------------------------------------------------------------------------------------------------


def prefix_encoder(embedding: ArrayLike, w1: ArrayLike, b1: ArrayLike, w2: ArrayLike, b2: ArrayLike) -> F64:
    """W2 tanh(W1 e + b1) + b2 for each row e: the prefix (n, L * 2 * KV) of prefix tuning with prefix_projection.

    Source
    ------
    Prefix tuning, arXiv:2101.00190, section 4.3.
    """
    return linear(np.tanh(linear(embedding, w1, b1)), w2, b2)


def prefix_encoder_backward(
    dprefix: ArrayLike, embedding: ArrayLike, w1: ArrayLike, b1: ArrayLike, w2: ArrayLike
) -> tuple[F64, F64, F64, F64, F64]:
    """Return dembedding, dw1, db1, dw2, db2."""
    d, e = _f64(dprefix), _f64(embedding)
    hidden = np.tanh(linear(e, w1, b1))
    dhidden = (d @ _f64(w2)) * (1 - hidden**2)
    return dhidden @ _f64(w1), dhidden.T @ e, dhidden.sum(axis=0), d.T @ hidden, d.sum(axis=0)


def decoder_logits(weights: dict[str, Any], config: dict[str, Any], input_ids: ArrayLike, cu_seqlens: ArrayLike) -> F64:
    """Logits of a decoder. ``weights`` has the names of Decoder.set_weight, ``config`` is Decoder.config.

    Virtual tokens of Decoder.set_virtual_tokens are the weights "prompt" (n, H), times its scale, or "prefix" (n, L * 2 * KV).
    A scaling vector of layers.N.q_proj is the weight layers.N.q_proj.scaling, or .input_scaling; a bottleneck behind
    layers.N.o_proj is layers.N.o_proj.bottleneck, a mapping of the arguments of `bottleneck`.

    Source
    ------
    Llama 2, arXiv:2307.09288, section 2.2; Gemma 2, arXiv:2408.00118, section 2; OLMo 2, arXiv:2501.00656, section 2.
    """
    x = hidden_states(weights, config, input_ids, cu_seqlens, config["num_hidden_layers"])
    head = weights["embed_tokens"] if config["tie_word_embeddings"] else weights["lm_head"]
    return softcap(config["logit_scale"] * linear(x, head), config["logit_softcap"])


def hidden_states(
    weights: dict[str, Any], config: dict[str, Any], input_ids: ArrayLike, cu_seqlens: ArrayLike, layer: int
) -> F64:
    """The residual stream after `layer` layers, 0: the embeddings; after the last one behind the final norm."""
    virtual = len(weights.get("prompt", weights.get("prefix", ())))
    ids, cu = np.asarray(input_ids), np.asarray(cu_seqlens)
    ids = np.concatenate([np.r_[np.full(virtual, -1), ids[a:b]] for a, b in zip(cu, cu[1:], strict=False)]).astype(int)
    cu = cu + virtual * np.arange(len(cu))
    lengths, real = np.diff(cu), ids >= 0
    positions = np.concatenate([np.arange(n) for n in lengths])
    x = np.where(real[:, None], config["embedding_scale"] * embedding(ids, weights["embed_tokens"]), 0.0)
    if "prompt" in weights:
        x[~real] = np.tile(_f64(weights["prompt"]), (len(lengths), 1))
    if config["learned_positions"]:
        x = x + embedding(positions, weights["embed_positions"])
    long = np.repeat(lengths, lengths) > (config["rope_switch"] or np.inf)
    for n in range(layer):
        w = {k.split(".", 2)[2]: v for k, v in weights.items() if k.startswith(f"layers.{n}.")}
        if "prefix" in weights:
            parts = _f64(weights["prefix"]).reshape(virtual, config["num_hidden_layers"], 2, -1)[:, n]
            w |= {"prefix k": parts[:, 0], "prefix v": parts[:, 1], "virtual": ~real}
        a = _attention_block(_norm(x, w, "input_layernorm", config, "pre_norm"), w, config, n, cu, positions, long)
        x = x + config["residual_scale"] * _norm(a, w, "attention_output_norm", config, "post_norm")
        m = _mlp_block(_norm(x, w, "post_attention_layernorm", config, "pre_norm"), w, config)
        x = x + config["residual_scale"] * _norm(m, w, "mlp_output_norm", config, "post_norm")
    return (_norm(x, weights, "norm", config) if layer == config["num_hidden_layers"] else x)[real]


def _norm(x: F64, w: dict[str, Any], name: str, config: dict[str, Any], switch: str | None = None) -> F64:
    if switch is not None and not config[switch]:
        return x
    if config["norm"] == "layer":
        return layernorm(x, w[name], w[name + ".bias"], config["norm_eps"])
    return rmsnorm(x, w[name], config["norm_eps"], config["norm_weight_offset"])


def _project(x: F64, w: dict[str, Any], name: str) -> F64:
    y = linear(x * _f64(w.get(f"{name}.input_scaling", 1.0)), w[name], w.get(f"{name}.bias"))
    y = y * _f64(w.get(f"{name}.scaling", 1.0))
    return bottleneck(y, **w[f"{name}.bottleneck"]) if f"{name}.bottleneck" in w else y


def _attention_block(
    x: F64, w: dict[str, Any], config: dict[str, Any], layer: int, cu: Any, positions: Any, long: Any
) -> F64:  # fmt: skip
    table = 0 if config["layer_rope"] is None else config["layer_rope"][layer]
    tables = [
        (config["rope_inv_freq"], config["rope_scale"]), (config["second_rope_inv_freq"], config["second_rope_scale"])
    ]  # fmt: skip
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"], "v": config["num_key_value_heads"]}
    made = {}
    for part, n in heads.items():
        y = _project(x, w, f"{part}_proj")
        if part != "v" and config["qk_norm"] == "row":
            y = _norm(y, w, f"{part}_norm", config)
        y = y.reshape(len(x), n, -1)
        if part != "v" and config["qk_norm"] == "head":
            y = _norm(y, w, f"{part}_norm", config)
        if part != "v" and table >= 0 and tables[table][0] is not None:
            turned = rope(y, positions, *tables[table])
            y = np.where(long[:, None, None], rope(y, positions, *tables[1]), turned) if long.any() else turned
        if f"prefix {part}" in w:  # as they are, in every segment
            y[w["virtual"]] = np.tile(w[f"prefix {part}"], (len(cu) - 1, 1)).reshape(-1, n, y.shape[2])
        made[part] = y
    window = config["sliding_window"]
    window = window if isinstance(window, int) else window[layer]
    scale = config["attention_scale"] or None
    a = attention(made["q"], made["k"], made["v"], cu, scale, window, config["attention_softcap"])
    return _project(a.reshape(len(x), -1), w, "o_proj")


def _mlp_block(x: F64, w: dict[str, Any], config: dict[str, Any]) -> F64:
    act = silu if config["activation"] == "silu" else gelu
    up = _project(x, w, "up_proj")
    return _project(act(_project(x, w, "gate_proj")) * up if config["gated_mlp"] else act(up), w, "down_proj")
