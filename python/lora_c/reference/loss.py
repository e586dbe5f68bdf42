"""The embedding and the losses, each with its gradient."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .arrays import F64, f64
from .attention import softcap, softcap_slope


def embedding(ids: ArrayLike, w: ArrayLike) -> F64:
    """w[ids]."""
    return f64(w)[np.asarray(ids)]


def embedding_backward(ids: ArrayLike, dy: ArrayLike, vocab_size: int) -> F64:
    """dw[v] = sum of dy[m] over the tokens m with ids[m] == v."""
    dy = f64(dy)
    dw = np.zeros((vocab_size, dy.shape[-1]))
    np.add.at(dw, np.asarray(ids), dy)
    return dw


def linear_cross_entropy(
    x: ArrayLike, w: ArrayLike, targets: ArrayLike, loss_weight: ArrayLike, scale: float = 1.0, cap: float = 0.0
) -> float:
    """sum over m of loss_weight[m] * (logsumexp(logits[m]) - logits[m, targets[m]]), logits = softcap(scale x Wᵀ)."""
    logits = softcap(scale * f64(x) @ f64(w).T, cap)
    top = logits.max(axis=1, keepdims=True)
    lse = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    rows = np.arange(len(logits))
    return float((f64(loss_weight) * (lse - logits[rows, np.asarray(targets)])).sum())


def linear_cross_entropy_backward(
    x: ArrayLike, w: ArrayLike, targets: ArrayLike, loss_weight: ArrayLike, scale: float = 1.0, cap: float = 0.0
) -> tuple[F64, F64]:
    """(dx, dw): dlogits = loss_weight * (softmax - onehot), then scale times the slope of the softcap."""
    x, w = f64(x), f64(w)
    logits = softcap(scale * x @ w.T, cap)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(p)), np.asarray(targets)] -= 1.0
    p *= f64(loss_weight)[:, None] * scale * softcap_slope(logits, cap)
    return p @ w, p.T @ x


def values_loss(y: ArrayLike, values: ArrayLike, loss_weight: ArrayLike, kind: str) -> float:
    """sum over m of loss_weight[m] * the mean over n of (y - v)², or of -v log s(y) - (1 - v) log(1 - s(y))."""
    y, v = f64(y), f64(values)
    each = (y - v) ** 2 if kind == "squared_error" else np.logaddexp(0, y) - y * v
    return float((f64(loss_weight) * each.mean(axis=1)).sum())


def values_loss_backward(y: ArrayLike, values: ArrayLike, loss_weight: ArrayLike, kind: str) -> F64:
    """dy = loss_weight / N times 2 (y - v), or s(y) - v."""
    y, v = f64(y), f64(values)
    slope = 2 * (y - v) if kind == "squared_error" else np.exp(-np.logaddexp(0, -y)) - v
    return f64(loss_weight)[:, None] / y.shape[1] * slope
