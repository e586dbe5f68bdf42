"""What lies between the projections of an MLP, IA3's vectors and bottlenecks, each with its gradient."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from .arrays import F64, f64
from .linear import linear


def silu(x: ArrayLike) -> F64:
    x = f64(x)
    return x / (1.0 + np.exp(-x))


def swiglu(gate: ArrayLike, up: ArrayLike = 1.0) -> F64:
    """silu(gate) * up.

    Source
    ------
    arXiv:2002.05202.
    """
    return silu(gate) * f64(up)


def swiglu_backward(dh: ArrayLike, gate: ArrayLike, up: ArrayLike = 1.0) -> tuple[F64, F64]:
    """(dgate, dup): silu'(g) = σ(g) (1 + g (1 - σ(g)))."""
    dh, gate, up = f64(dh), f64(gate), f64(up)
    sigma = 1.0 / (1.0 + np.exp(-gate))
    return dh * up * sigma * (1.0 + gate * (1.0 - sigma)), dh * gate * sigma


_GELU_K = math.sqrt(2.0 / math.pi)


def gelu(x: ArrayLike) -> F64:
    """x / 2 (1 + tanh(k (x + 0.044715 x³))), k = sqrt(2/π).

    Source
    ------
    GELU, arXiv:1606.08415, section 2.
    """
    x = f64(x)
    return 0.5 * x * (1.0 + np.tanh(_GELU_K * (x + 0.044715 * x**3)))


def geglu(gate: ArrayLike, up: ArrayLike = 1.0) -> F64:
    """gelu(gate) * up.

    Source
    ------
    arXiv:2002.05202.
    """
    return gelu(gate) * f64(up)


def geglu_backward(dh: ArrayLike, gate: ArrayLike, up: ArrayLike = 1.0) -> tuple[F64, F64]:
    """(dgate, dup): gelu'(g) = (1 + t)/2 + g/2 (1 - t²) k (1 + 3 · 0.044715 g²) with t the tanh."""
    dh, gate = f64(dh), f64(gate)
    t = np.tanh(_GELU_K * (gate + 0.044715 * gate**3))
    slope = 0.5 * (1.0 + t) + 0.5 * gate * (1.0 - t * t) * _GELU_K * (1.0 + 3 * 0.044715 * gate**2)
    return dh * f64(up) * slope, dh * gelu(gate)


def relu(x: ArrayLike) -> F64:
    """max(x, 0)."""
    return np.maximum(f64(x), 0.0)


def reglu(gate: ArrayLike, up: ArrayLike = 1.0) -> F64:
    """relu(gate) * up.

    Source
    ------
    arXiv:2002.05202.
    """
    return relu(gate) * f64(up)


def reglu_backward(dh: ArrayLike, gate: ArrayLike, up: ArrayLike = 1.0) -> tuple[F64, F64]:
    """(dgate, dup): the slope is 1 where gate > 0, else 0."""
    dh, gate = f64(dh), f64(gate)
    return np.where(gate > 0, dh * f64(up), 0.0), dh * relu(gate)


def scale_columns(x: ArrayLike, factors: ArrayLike) -> F64:
    """x * factors, column by column.

    Source
    ------
    IA3, arXiv:2205.05638, eq. 1.
    """
    return f64(x) * f64(factors)


def scale_columns_backward(dy: ArrayLike, x: ArrayLike, factors: ArrayLike) -> tuple[F64, F64]:
    """(dx, dfactors): dy * factors, and the sum of dy * x over the rows."""
    dy, x = f64(dy), f64(x)
    return dy * f64(factors), (dy * x).reshape(-1, x.shape[-1]).sum(0)


ACTIVATIONS = {"silu": (silu, swiglu_backward), "gelu_tanh": (gelu, geglu_backward), "relu": (relu, reglu_backward)}


def bottleneck(
    h: ArrayLike, down: ArrayLike, down_bias: ArrayLike, up: ArrayLike, up_bias: ArrayLike, scale: float, activation: str
) -> F64:  # fmt: skip
    """h + scale (up activation(down h + down_bias) + up_bias).

    Source
    ------
    Houlsby et al., arXiv:1902.00751, section 2.1.
    """
    inside = ACTIVATIONS[activation][0](linear(h, down, down_bias))
    return f64(h) + scale * linear(inside, up, up_bias)


def bottleneck_backward(
    dy: ArrayLike, h: ArrayLike, down: ArrayLike, down_bias: ArrayLike, up: ArrayLike, up_bias: ArrayLike, scale: float,
    activation: str,
) -> tuple[F64, F64, F64, F64, F64]:  # fmt: skip
    """(dh, ddown, ddown_bias, dup, dup_bias) for rows of h."""
    forward, backward = ACTIVATIONS[activation]
    before, dupdate = linear(h, down, down_bias), scale * f64(dy)
    dbefore = backward(dupdate @ f64(up), before)[0]
    dh = f64(dy) + dbefore @ f64(down)
    return dh, dbefore.T @ f64(h), dbefore.sum(0), dupdate.T @ forward(before), dupdate.sum(0)
