"""The start values of an adapter.

Most initialisations leave the base as it is. PiSSA and OLoRA move the principal part of W into the adapter and leave the
rest as the frozen base; LoftQ starts from the error that quantizing W makes. Those return the base that belongs to the
adapter, so that the sum is what it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..configs import LoraConfig
from ..errors import ConfigError
from .data import F32
from .targets import AdapterTarget


@dataclass(frozen=True)
class Start:
    """A (r, in), B (out, r), and W - s B A as float32 where the base changes. LoftQ's base is `quantized` already."""

    A: F32
    B: F32
    residual: F32 | None = None
    quantized: Any = None


def changes_base(config: LoraConfig) -> bool:
    """Whether the initialisation needs a base of its own."""
    return str(config.init_lora_weights).startswith(("pissa", "olora", "loftq"))


def init_adapter(target: AdapterTarget, config: LoraConfig) -> tuple[F32, F32]:
    """Return (A, B) of an initialisation that keeps the base, drawn from a stream of the module's own.

    Source
    ------
    LoRA, arXiv:2106.09685, section 4.1; bounds as in PEFT (Kaiming with a = sqrt 5: 1 / sqrt(fan in)).
    """
    out_features, in_features = target.spec.shape
    generator = generator_of(config.seed, target.spec.module)
    if config.init_lora_weights == "orthogonal":
        return _orthogonal(generator, target)
    if target.spec.kind == "embedding":  # as in PEFT whatever the initialisation, but for False
        a = generator.standard_normal((target.r, in_features), np.float32)
    elif config.init_lora_weights == "gaussian":
        a = generator.standard_normal((target.r, in_features), np.float32) * np.float32(1 / target.r)
    else:
        a = _uniform(generator, (target.r, in_features), in_features)
    b = np.zeros((out_features, target.r), np.float32)
    if config.init_lora_weights is False:
        b = _uniform(generator, (out_features, target.r), target.r)
    return np.ascontiguousarray(a, np.float32), b


def init_from_base(
    target: AdapterTarget, config: LoraConfig, weight: F32, quantize: Callable[[F32], Any], dequantize: Callable[[Any], F32]
) -> Start:
    """Return the start of PiSSA, OLoRA or LoftQ for W (out, in).

    Parameters
    ----------
    quantize, dequantize : callable
        The rounding of the base, for LoftQ.

    Source
    ------
    PiSSA, arXiv:2404.02948, eq. 2-4; OLoRA, arXiv:2406.01775, algorithm 1; LoftQ, arXiv:2310.08659, algorithm 1.
    """
    kind = str(config.init_lora_weights)
    if target.r > min(target.spec.shape):
        raise ConfigError(f"r: expected at most {min(target.spec.shape)} for {kind!r} ({target.spec.module}), got {target.r}")
    if kind == "loftq":
        return _loftq(target, weight, config.loftq_config.get("loftq_iter", 1), quantize, dequantize)
    if kind == "olora":
        q, r = np.linalg.qr(weight)
        a, b = r[: target.r], q[:, : target.r]
    else:
        u, s, vt = _svd(weight, target, config)
        a, b = _split(u, s / np.float32(target.scale), vt)
    a, b = np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
    return Start(a, b, weight - np.float32(target.scale) * (b @ a))


def generator_of(seed: int, module: str) -> np.random.Generator:
    """Return the generator of a module: its stream depends on the seed and the module's name only."""
    digest = blake2b(f"{seed}:{module}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, np.uint64)))


def _uniform(generator: np.random.Generator, shape: tuple[int, int], fan_in: int) -> F32:
    drawn: F32 = (generator.random(shape, np.float32) * 2 - 1) * np.float32(1 / math.sqrt(fan_in))
    return drawn


def _orthogonal(generator: np.random.Generator, target: AdapterTarget) -> tuple[F32, F32]:
    """Rows of A and columns of B in orthogonal halves of the rank space, so that B A is zero and both are not."""
    if target.r % 2:
        raise ConfigError(f"init_lora_weights: expected an even rank for 'orthogonal', got {target.r} ({target.spec.module})")
    out_features, in_features = target.spec.shape
    q, _ = np.linalg.qr(generator.standard_normal((target.r, target.r)))
    a = (generator.standard_normal((in_features, target.r // 2)) @ q[0::2]).T / 10
    b = generator.standard_normal((out_features, target.r // 2)) @ q[1::2] / 10
    return np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)


def _svd(weight: F32, target: AdapterTarget, config: LoraConfig) -> tuple[F32, F32, F32]:
    """The first r singular triplets; "pissa_niter_N" by N rounds of subspace iteration."""
    _, _, rounds = str(config.init_lora_weights).partition("_niter_")
    if not rounds:
        u, s, vt = np.linalg.svd(weight, full_matrices=False)
    else:
        start = generator_of(config.seed, target.spec.module).standard_normal((weight.shape[1], target.r), np.float32)
        basis, _ = np.linalg.qr(weight @ start)
        for _ in range(int(rounds)):
            basis, _ = np.linalg.qr(weight.T @ basis)
            basis, _ = np.linalg.qr(weight @ basis)
        inner, s, vt = np.linalg.svd(basis.T @ weight, full_matrices=False)
        u = basis @ inner
    return u[:, : target.r], s[: target.r], vt[: target.r]


def _split(u: F32, s: F32, vt: F32) -> tuple[NDArray[Any], NDArray[Any]]:
    root = np.sqrt(s)
    return root[:, None] * vt, u * root


def _loftq(
    target: AdapterTarget, weight: F32, rounds: int, quantize: Callable[[F32], Any], dequantize: Callable[[Any], F32]
) -> Start:
    """Quantize what the adapter leaves, fit the adapter to what the quantization loses, and again."""
    rest = weight
    for _ in range(rounds):
        quantized = quantize(np.ascontiguousarray(rest, np.float32))
        u, s, vt = np.linalg.svd(weight - dequantize(quantized), full_matrices=False)
        a, b = _split(u[:, : target.r], s[: target.r] / np.float32(target.scale), vt[: target.r])
        rest = weight - np.float32(target.scale) * (b @ a)
    return Start(np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32), quantized=quantized)
