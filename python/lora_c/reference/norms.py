"""RMSNorm, LayerNorm and the rotation of positions, each with its gradient."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .arrays import F64, f64


def rmsnorm(x: ArrayLike, weight: ArrayLike, eps: float, weight_offset: float = 0.0) -> F64:
    """x / sqrt(mean(x²) + eps) * (weight_offset + weight).

    Source
    ------
    arXiv:1910.07467, eq. 4; Gemma's offset is 1.
    """
    x = f64(x)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * (weight_offset + f64(weight))


def rmsnorm_backward(
    dy: ArrayLike, x: ArrayLike, weight: ArrayLike, eps: float, weight_offset: float = 0.0
) -> tuple[F64, F64]:  # fmt: skip
    """(dx, dweight). With r = 1/sqrt(mean(x²)+eps) and g = dy * (weight_offset + weight):  dx = r g - r³ x mean(g x)."""
    dy, x = f64(dy), f64(x)
    r = 1.0 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    g = dy * (weight_offset + f64(weight))
    dx = r * g - r**3 * x * np.mean(g * x, axis=-1, keepdims=True)
    return dx, (dy * x * r).reshape(-1, x.shape[-1]).sum(axis=0)


def layernorm(x: ArrayLike, weight: ArrayLike, bias: ArrayLike, eps: float) -> F64:
    """(x - mean) / sqrt(var + eps) * weight + bias.

    Source
    ------
    arXiv:1607.06450, eq. 4.
    """
    x = f64(x)
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * f64(weight) + f64(bias)


def layernorm_backward(dy: ArrayLike, x: ArrayLike, weight: ArrayLike, eps: float) -> tuple[F64, F64, F64]:
    """(dx, dweight, dbias). With z the normed x and g = dy * weight:  dx = r (g - mean(g) - z mean(g z))."""
    dy, x = f64(dy), f64(x)
    x = x - x.mean(axis=-1, keepdims=True)
    r = 1.0 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    z, g = x * r, dy * f64(weight)
    dx = r * (g - g.mean(axis=-1, keepdims=True) - z * np.mean(g * z, axis=-1, keepdims=True))
    return dx, (dy * z).reshape(-1, x.shape[-1]).sum(axis=0), dy.reshape(-1, x.shape[-1]).sum(axis=0)


def rope(x: ArrayLike, positions: ArrayLike, inv_freq: ArrayLike, scale: float = 1.0, backward: bool = False) -> F64:
    """Rotate the pairs (i, i + n) of x (M, heads, D), n = len(inv_freq), by positions[m] * inv_freq[i].

    Elements from 2 n on stay as they are (partial rotation).

    Source
    ------
    RoFormer, arXiv:2104.09864, eq. 34, with the half-split pairing of Hugging Face folders.
    """
    x = f64(x)
    angle = f64(positions)[:, None] * f64(inv_freq)[None, :]
    cos, sin = scale * np.cos(angle)[:, None, :], scale * np.sin(angle)[:, None, :]
    sin = -sin if backward else sin
    n = cos.shape[-1]
    x1, x2, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], axis=-1)
