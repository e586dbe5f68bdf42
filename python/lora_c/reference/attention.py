"""Attention over packed segments and soft caps, each with its gradient."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from .arrays import F64, f64


def softcap(x: ArrayLike, cap: float) -> F64:
    """cap * tanh(x / cap); cap 0: x.

    Source
    ------
    Gemma 2, arXiv:2408.00118, section 2.
    """
    x = f64(x)
    return cap * np.tanh(x / cap) if cap else x


def softcap_slope(y: ArrayLike, cap: float) -> F64:
    """The derivative of softcap, from its result: 1 - (y / cap)²."""
    y = f64(y)
    return 1.0 - (y / cap) ** 2 if cap else np.ones_like(y)


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
    q, k, v = f64(q), f64(k), f64(v)
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
    dout, q, k, v = f64(dout), f64(q), f64(k), f64(v)
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
