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


# --- NF4 (QLoRA, arXiv:2305.14314, section 3) ---------------------------------------------------------------------


def nf4_quantize(w: ArrayLike, lut: ArrayLike, block_size: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes (one per element, not packed) and absmax (one per block) of the flattened matrix.

    The scaled value x * (1/absmax) is float32, as in bitsandbytes; a value on the midpoint of two codes takes the lower.
    """
    x = np.asarray(w, np.float32).reshape(-1)
    table = np.asarray(lut, np.float32)
    midpoints = ((table[1:].astype(np.float64) + table[:-1]) / 2).astype(np.float32)
    n_blocks = -(-x.size // block_size)
    codes = np.empty(x.size, np.uint8)
    absmax = np.empty(n_blocks, np.float32)
    for b in range(n_blocks):
        block = x[b * block_size : (b + 1) * block_size]
        absmax[b] = np.abs(block).max()
        inverse = np.float32(1) / np.maximum(absmax[b], np.float32(1e-38))
        codes[b * block_size : (b + 1) * block_size] = np.searchsorted(midpoints, block * inverse, side="left")
    return codes, absmax


def nf4_dequantize(codes: ArrayLike, absmax: ArrayLike, lut: ArrayLike, block_size: int = 64) -> NDArray[np.float32]:
    """lut[code] * absmax[block] in float32."""
    c = np.asarray(codes)
    scales = np.repeat(np.asarray(absmax, np.float32), block_size)[: c.size]
    return np.asarray(lut, np.float32)[c] * scales


# --- linear layers ------------------------------------------------------------------------------------------------


def linear(x: ArrayLike, w: ArrayLike, bias: ArrayLike | None = None) -> F64:
    """y[M,N] = x[M,K] · w[N,K]ᵀ + bias."""
    y = _f64(x) @ _f64(w).T
    return y if bias is None else y + _f64(bias)


def lora_linear(x: ArrayLike, w: ArrayLike, a: ArrayLike, b: ArrayLike, scale: float, bias: ArrayLike | None = None) -> F64:
    """y = x Wᵀ + s (x Aᵀ) Bᵀ, A (R, K), B (N, R).   Source: LoRA, arXiv:2106.09685, eq. 3."""
    return linear(x, w, bias) + scale * (_f64(x) @ _f64(a).T) @ _f64(b).T


def lora_linear_backward(
    dy: ArrayLike, x: ArrayLike, w: ArrayLike, a: ArrayLike, b: ArrayLike, scale: float
) -> tuple[F64, F64, F64]:
    """(dx, dA, dB) = (dy W + s (dy B) A,  s (dy B)ᵀ x,  s dyᵀ (x Aᵀ))."""
    dy, x, w, a, b = _f64(dy), _f64(x), _f64(w), _f64(a), _f64(b)
    dt = scale * dy @ b
    return dy @ w + dt @ a, dt.T @ x, scale * dy.T @ (x @ a.T)


def dora_norm(w: ArrayLike, a: ArrayLike, b: ArrayLike, scale: float) -> F64:
    """Row lengths ||W + s B A|| (N,).   Source: DoRA, arXiv:2402.09353, eq. 5, with rows for the paper's columns."""
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


def rmsnorm(x: ArrayLike, weight: ArrayLike, eps: float) -> F64:
    """x / sqrt(mean(x²) + eps) * weight.   Source: arXiv:1910.07467, eq. 4."""
    x = _f64(x)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * _f64(weight)


def rmsnorm_backward(dy: ArrayLike, x: ArrayLike, weight: ArrayLike, eps: float) -> tuple[F64, F64]:
    """(dx, dweight). With r = 1/sqrt(mean(x²)+eps) and g = dy * weight:  dx = r g - r³ x mean(g x)."""
    dy, x = _f64(dy), _f64(x)
    r = 1.0 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    g = dy * _f64(weight)
    dx = r * g - r**3 * x * np.mean(g * x, axis=-1, keepdims=True)
    return dx, (dy * x * r).reshape(-1, x.shape[-1]).sum(axis=0)


def rope(x: ArrayLike, positions: ArrayLike, inv_freq: ArrayLike, scale: float = 1.0, backward: bool = False) -> F64:
    """Rotate the pairs (i, i + D/2) of x (M, heads, D) by positions[m] * inv_freq[i].

    Source: RoFormer, arXiv:2104.09864, eq. 34, with the half-split pairing of Hugging Face folders.
    """
    x = _f64(x)
    angle = _f64(positions)[:, None] * _f64(inv_freq)[None, :]
    cos, sin = scale * np.cos(angle)[:, None, :], scale * np.sin(angle)[:, None, :]
    sin = -sin if backward else sin
    half = x.shape[-1] // 2
    x1, x2 = x[..., :half], x[..., half:]
    return np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)


def silu(x: ArrayLike) -> F64:
    x = _f64(x)
    return x / (1.0 + np.exp(-x))


def swiglu(gate: ArrayLike, up: ArrayLike) -> F64:
    """silu(gate) * up.   Source: arXiv:2002.05202."""
    return silu(gate) * _f64(up)


def swiglu_backward(dh: ArrayLike, gate: ArrayLike, up: ArrayLike) -> tuple[F64, F64]:
    """(dgate, dup): silu'(g) = σ(g) (1 + g (1 - σ(g)))."""
    dh, gate, up = _f64(dh), _f64(gate), _f64(up)
    sigma = 1.0 / (1.0 + np.exp(-gate))
    return dh * up * sigma * (1.0 + gate * (1.0 - sigma)), dh * gate * sigma


# --- attention ----------------------------------------------------------------------------------------------------


def _attention_probabilities(q: F64, k: F64, scale: float, window: int) -> F64:
    """softmax(scale q kᵀ) of one head, causal; query i of n sees keys up to len(k) - n + i."""
    scores = scale * q @ k.T
    query = np.arange(len(q))[:, None] + len(k) - len(q)
    key = np.arange(len(k))[None, :]
    hidden = key > query
    if window:
        hidden |= key <= query - window
    scores = np.where(hidden, -np.inf, scores)
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def attention(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, cu_seqlens: ArrayLike, scale: float | None = None, sliding_window: int = 0
) -> F64:
    """Causal grouped-query attention over packed segments. q (M, heads, D), k and v (M, kv_heads, D) -> (M, heads, D).

    Source: Attention Is All You Need, arXiv:1706.03762, eq. 1; grouped queries, arXiv:2305.13245.
    """
    q, k, v = _f64(q), _f64(k), _f64(v)
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    group = q.shape[1] // k.shape[1]
    out = np.empty_like(q)
    cu = np.asarray(cu_seqlens)
    for begin, end in zip(cu[:-1], cu[1:], strict=True):
        for h in range(q.shape[1]):
            p = _attention_probabilities(q[begin:end, h], k[begin:end, h // group], scale, sliding_window)
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
) -> tuple[F64, F64, F64]:
    """(dq, dk, dv). With P the probabilities: dV = Pᵀ dO, dP = dO Vᵀ, dS = P * (dP - rowsum(dP * P))."""
    dout, q, k, v = _f64(dout), _f64(q), _f64(k), _f64(v)
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    group = q.shape[1] // k.shape[1]
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    cu = np.asarray(cu_seqlens)
    for begin, end in zip(cu[:-1], cu[1:], strict=True):
        for h in range(q.shape[1]):
            s, g = slice(begin, end), h // group
            p = _attention_probabilities(q[s, h], k[s, g], scale, sliding_window)
            dv[s, g] += p.T @ dout[s, h]
            dp = dout[s, h] @ v[s, g].T
            ds = p * (dp - (dp * p).sum(axis=1, keepdims=True))
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


def linear_cross_entropy(x: ArrayLike, w: ArrayLike, targets: ArrayLike, loss_weight: ArrayLike) -> float:
    """sum over m of loss_weight[m] * (logsumexp(x Wᵀ)[m] - logits[m, targets[m]])."""
    logits = _f64(x) @ _f64(w).T
    top = logits.max(axis=1, keepdims=True)
    lse = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    rows = np.arange(len(logits))
    return float((_f64(loss_weight) * (lse - logits[rows, np.asarray(targets)])).sum())


def linear_cross_entropy_backward(x: ArrayLike, w: ArrayLike, targets: ArrayLike, loss_weight: ArrayLike) -> tuple[F64, F64]:
    """(dx, dw): dlogits = loss_weight * (softmax - onehot)."""
    x, w = _f64(x), _f64(w)
    logits = x @ w.T
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(p)), np.asarray(targets)] -= 1.0
    p *= _f64(loss_weight)[:, None]
    return p @ w, p.T @ x


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
    """(p, m, v) after one step; decay before the update.   Source: AdamW, arXiv:1711.05101, algorithm 2."""
    p, g, m, v = _f64(p), _f64(g), _f64(m), _f64(v)
    p = p * (1.0 - lr * weight_decay)
    m = beta1 * m + (1.0 - beta1) * g
    v = beta2 * v + (1.0 - beta2) * g * g
    mhat, vhat = m / (1.0 - beta1**step), v / (1.0 - beta2**step)
    return p - lr * mhat / (np.sqrt(vhat) + eps), m, v


def global_norm(grads: list[Any]) -> float:
    """sqrt of the sum of squares over all gradients."""
    return math.sqrt(sum(float((_f64(g) ** 2).sum()) for g in grads))


# --- the decoder --------------------------------------------------------------------------------------------------


def decoder_logits(
    weights: dict[str, Any], config: dict[str, Any], input_ids: ArrayLike, cu_seqlens: ArrayLike, inv_freq: ArrayLike
) -> F64:
    """Logits of a Llama-family decoder. ``weights`` has the names of Decoder.set_weight, each a float matrix or vector.

    Source: Llama 2, arXiv:2307.09288, section 2.2; the shapes are those of Hugging Face folders.
    """
    ids, cu = np.asarray(input_ids), np.asarray(cu_seqlens)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    eps = config["norm_eps"]
    positions = np.concatenate([np.arange(e - b) for b, e in zip(cu[:-1], cu[1:], strict=True)])
    x = embedding(ids, weights["embed_tokens"])
    for layer in range(config["num_hidden_layers"]):
        w = {k.split(".", 2)[2]: v for k, v in weights.items() if k.startswith(f"layers.{layer}.")}
        xn = rmsnorm(x, w["input_layernorm"], eps)
        q = linear(xn, w["q_proj"], w.get("q_proj.bias")).reshape(len(ids), heads, -1)
        k = linear(xn, w["k_proj"], w.get("k_proj.bias")).reshape(len(ids), kv_heads, -1)
        v = linear(xn, w["v_proj"], w.get("v_proj.bias")).reshape(len(ids), kv_heads, -1)
        a = attention(rope(q, positions, inv_freq), rope(k, positions, inv_freq), v, cu)
        x = x + linear(a.reshape(len(ids), -1), w["o_proj"], w.get("o_proj.bias"))
        xn = rmsnorm(x, w["post_attention_layernorm"], eps)
        h = swiglu(linear(xn, w["gate_proj"], w.get("gate_proj.bias")), linear(xn, w["up_proj"], w.get("up_proj.bias")))
        x = x + linear(h, w["down_proj"], w.get("down_proj.bias"))
    head = weights["embed_tokens"] if config.get("tie_word_embeddings") else weights["lm_head"]
    return linear(rmsnorm(x, weights["norm"], eps), head)
