"""One step of every optimizer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .arrays import F64, f64


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
    p, g, m, v = f64(p), f64(g), f64(m), f64(v)
    p = p * (1.0 - lr * weight_decay)
    m = beta1 * m + (1.0 - beta1) * g
    v = beta2 * v + (1.0 - beta2) * g * g
    mhat, vhat = m / (1.0 - beta1**step), v / (1.0 - beta2**step)
    return p - lr * mhat / (np.sqrt(vhat) + eps), m, v


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
    p, g, m = f64(p), f64(g), f64(m)
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
    p, g, m = f64(p), f64(g), f64(m)
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
    p, g = f64(p), f64(g)
    beta2 = 1.0 - step**decay_rate
    squares = g * g + eps[0]
    out = {"col": beta2 * f64(state["col"]) + (1.0 - beta2) * (squares.mean(0) if p.ndim == 2 else squares)}
    second = out["col"]
    if p.ndim == 2:
        out["row"] = beta2 * f64(state["row"]) + (1.0 - beta2) * squares.mean(1)
        second = np.outer(out["row"] / out["row"].mean(), out["col"])
    update = g / np.sqrt(second)
    update = update / max(1.0, float(np.sqrt((update**2).mean())) / clip_threshold)
    rate = min(1e-6 * step if warmup_init else 1e-2, 1.0 / math.sqrt(step)) if relative_step else float(lr or 0.0)
    if scale_parameter:
        rate *= max(eps[1], float(np.sqrt((p**2).mean())))
    update = rate * update
    if beta1 is not None:
        update = out["m"] = beta1 * f64(state["m"]) + (1.0 - beta1) * update
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
    x = f64(x)
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
    p, g, m = f64(p), f64(g), f64(m)
    m = momentum * m + (1.0 - momentum) * g
    update = newton_schulz(momentum * m + (1.0 - momentum) * g if nesterov else m, steps=ns_steps)
    rows, cols = p.shape
    ratio = 0.2 * math.sqrt(max(rows, cols)) if adjust_lr_fn == "match_rms_adamw" else math.sqrt(max(1.0, rows / cols))
    return p * (1.0 - lr * weight_decay) - lr * ratio * update, m


def global_norm(grads: list[Any]) -> float:
    """sqrt of the sum of squares over all gradients."""
    return math.sqrt(sum(float((f64(g) ** 2).sum()) for g in grads))
