"""Linear layers: plain, with LoRA, with DoRA."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .arrays import F64, f64


def linear(x: ArrayLike, w: ArrayLike, bias: ArrayLike | None = None) -> F64:
    """y[M,N] = x[M,K] · w[N,K]ᵀ + bias."""
    y = f64(x) @ f64(w).T
    return y if bias is None else y + f64(bias)


def lora_linear(x: ArrayLike, w: ArrayLike, a: ArrayLike, b: ArrayLike, scale: float, bias: ArrayLike | None = None) -> F64:
    """y = x Wᵀ + s (x Aᵀ) Bᵀ, A (R, K), B (N, R).

    Source
    ------
    LoRA, arXiv:2106.09685, eq. 3.
    """
    return linear(x, w, bias) + scale * (f64(x) @ f64(a).T) @ f64(b).T


def lora_linear_backward(
    dy: ArrayLike, x: ArrayLike, w: ArrayLike, a: ArrayLike, b: ArrayLike, scale: float
) -> tuple[F64, F64, F64]:
    """(dx, dA, dB) = (dy W + s (dy B) A,  s (dy B)ᵀ x,  s dyᵀ (x Aᵀ))."""
    dy, x, w, a, b = f64(dy), f64(x), f64(w), f64(a), f64(b)
    dt = scale * dy @ b
    return dy @ w + dt @ a, dt.T @ x, scale * dy.T @ (x @ a.T)


def dora_norm(w: ArrayLike, a: ArrayLike, b: ArrayLike, scale: float) -> F64:
    """Row lengths ||W + s B A|| (N,).

    Source
    ------
    DoRA, arXiv:2402.09353, eq. 5, with rows for the paper's columns.
    """
    return np.linalg.norm(f64(w) + scale * f64(b) @ f64(a), axis=1)


def dora_linear(
    x: ArrayLike, w: ArrayLike, a: ArrayLike, b: ArrayLike, scale: float, magnitude: ArrayLike, norm: ArrayLike,
    bias: ArrayLike | None = None, mask: ArrayLike = 1.0,
) -> F64:  # fmt: skip
    """y = W x + (g - 1) W d + g s B A d + bias with d = mask * x and g = magnitude / norm.

    mask (M, K) is the dropout mask over (1 - p): PEFT drops the input of everything that DoRA adds to W x.
    """
    g = f64(magnitude) / f64(norm)
    dropped = f64(x) * f64(mask)
    return linear(x, w, bias) + (g - 1) * linear(dropped, w) + g * (scale * (dropped @ f64(a).T) @ f64(b).T)


def dora_linear_backward(
    dy: ArrayLike, x: ArrayLike, w: ArrayLike, a: ArrayLike, b: ArrayLike, scale: float, magnitude: ArrayLike,
    norm: ArrayLike, mask: ArrayLike = 1.0,
) -> tuple[F64, F64, F64, F64]:  # fmt: skip
    """(dx, dA, dB, dmagnitude), the norm held constant (DoRA, section 4.3).   dz = g * dy is what reaches W + s B A."""
    dy, x, w, a, b, norm = f64(dy), f64(x), f64(w), f64(a), f64(b), f64(norm)
    dropped = x * f64(mask)
    dz = dy * (f64(magnitude) / norm)
    dt = scale * dz @ b
    dx = dy @ w + f64(mask) * ((dz - dy) @ w + dt @ a)
    z = dropped @ w.T + scale * (dropped @ a.T) @ b.T
    return dx, dt.T @ dropped, scale * dz.T @ (dropped @ a.T), (dy * z).sum(axis=0) / norm
