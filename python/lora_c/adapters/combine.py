"""Several adapters into one, as PEFT's add_weighted_adapter does it.

Sources: task arithmetic, arXiv:2212.04089; TIES, arXiv:2306.01708; DARE, arXiv:2311.03099.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..configs import MOST_RANK, LoraConfig
from ..configs.adapters import kind_name
from ..errors import AdapterError, ConfigError, nearest
from ..families.architectures import Architecture
from .data import F32, AdapterArrays, MatrixArrays
from .targets import describe_targets

# The part before "_svd" and what it does to a stack of tensors (n, ...) with weights (n,).
_RULES = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
COMBINATIONS = ("linear", "cat", "svd", *_RULES[1:], *(f"{rule}_svd" for rule in _RULES[1:]))
_ALIASES = {"dare": "dare_linear"}


@dataclass(frozen=True)
class Combination:
    """How adapters are combined, with PEFT's names.

    Parameters
    ----------
    combination_type : str
        "cat" and "svd" keep the sum of the updates (svd cuts it to a rank), "linear" mixes the A and the B, "ties" and
        "dare_..." prune first; with "_svd" behind it, the updates themselves are mixed and then cut to a rank.
    svd_rank, svd_clamp
        Rank of the result (default: the largest of the adapters), quantile that its entries are clamped to.
    density : float
        Share of the entries that pruning keeps.
    majority_sign_method : "total" or "frequency"
        How TIES elects a sign: by the sum of the entries, or by their number.
    seed : int
        For the random pruning of DARE.
    """

    combination_type: str = "svd"
    svd_rank: int | None = None
    svd_clamp: float | None = None
    density: float | None = None
    majority_sign_method: Literal["total", "frequency"] = "total"
    seed: int = 0

    def checked(self) -> Combination:
        """Return it with aliases resolved.

        Raises
        ------
        ConfigError
            An unknown name, or a number out of range.
        """
        kind = _ALIASES.get(self.combination_type, self.combination_type)
        if kind not in COMBINATIONS:
            hint = nearest(kind, COMBINATIONS)
            raise ConfigError(f"combination_type: expected one of {', '.join(COMBINATIONS)}, got {kind!r}{hint}")
        prunes = kind.startswith(_RULES[1:])
        if prunes and (self.density is None or not 0 < self.density <= 1):
            raise ConfigError(f"density: expected a share in (0, 1] for {kind!r}, got {self.density!r}")
        if self.svd_rank is not None and not 1 <= self.svd_rank <= MOST_RANK:
            raise ConfigError(f"svd_rank: expected 1 to {MOST_RANK:,}, got {self.svd_rank}")
        if self.seed < 0:
            raise ConfigError(f"seed: expected 0 or more, got {self.seed}")
        if self.svd_clamp is not None and not 0 < self.svd_clamp <= 1:
            raise ConfigError(f"svd_clamp: expected a quantile in (0, 1], got {self.svd_clamp}")
        if self.majority_sign_method not in ("total", "frequency"):
            raise ConfigError(f"majority_sign_method: expected 'total' or 'frequency', got {self.majority_sign_method!r}")
        return Combination(kind, self.svd_rank, self.svd_clamp, self.density, self.majority_sign_method, self.seed)


def combine(
    adapters: Sequence[AdapterArrays], weights: Sequence[float], how: Combination, architecture: Architecture
) -> AdapterArrays:
    """Return the weighted combination; its scale is 1 for every matrix.

    Raises
    ------
    AdapterError
        An adapter holds more than low-rank updates, or the ranks do not fit the combination.
    ConfigError
        The weights or the combination are not valid.
    """
    how = how.checked()
    if len(adapters) != len(weights) or not adapters:
        raise ConfigError(f"weights: expected one per adapter ({len(adapters)}), got {len(weights)}")
    if not all(math.isfinite(weight) for weight in weights):
        raise ConfigError(f"weights: expected finite numbers, got {list(weights)}")
    _refuse_more_than_updates(adapters)
    if len(adapters) == 1:
        how = Combination("linear")
    names = list(dict.fromkeys(name for adapter in adapters for name in adapter.matrices))
    largest = [max(matrix.r for matrix in adapter.matrices.values()) for adapter in adapters]
    generator = np.random.Generator(np.random.Philox(how.seed))
    matrices = {}
    for name in names:
        found = [(a.matrices[name], w) for a, w in zip(adapters, weights, strict=True) if name in a.matrices]
        parts, shares = [matrix for matrix, _ in found], np.array([w * matrix.scale for matrix, w in found])
        matrices[name] = _combine_one(name, parts, shares, how, largest, generator)
    return AdapterArrays(_config(adapters[0].config, matrices, architecture), matrices)


def _refuse_more_than_updates(adapters: Sequence[AdapterArrays]) -> None:
    other = next((adapter.config for adapter in adapters if not isinstance(adapter.config, LoraConfig)), None)
    if other is not None:
        raise AdapterError(
            f"adapters: expected adapters of LoRA, got one of {kind_name(other)}; use it beside them with set_adapter([...])"
        )
    for adapter in adapters:
        more = "DoRA magnitudes" if adapter.config.use_dora else next(iter(adapter.saved), None)
        more = (
            more
            or ("trained token rows" if adapter.tokens else None)
            or ("a base of its own" if adapter.residual_base else None)
        )
        if more and len(adapters) > 1:
            raise AdapterError(
                f"combine: expected adapters of low-rank updates only, got one with {more}; merge that one into the base "
                "first and train or load the others on the result"
            )


def _combine_one(
    name: str, parts: list[MatrixArrays], shares: NDArray[np.float64], how: Combination, largest: list[int],
    generator: np.random.Generator,
) -> MatrixArrays:  # fmt: skip
    kind = how.combination_type
    if kind == "cat":
        return _concatenate(parts, shares, sum(largest))
    rank = how.svd_rank or max(largest)
    if kind == "svd":
        return _cut(*_low_rank_svd(parts, shares), rank, how.svd_clamp)
    rule = _rule(kind.removesuffix("_svd"), how, generator)
    if kind.endswith("_svd"):
        # the scale is part of each delta before pruning, so only the caller's weight is left to apply
        deltas = [np.float32(part.scale) * (part.B @ part.A) for part in parts]
        delta = rule(deltas, shares / np.array([part.scale for part in parts]))
        return _cut(*np.linalg.svd(delta, full_matrices=False), rank, how.svd_clamp)
    ranks = sorted({part.r for part in parts} | set(largest))
    if len({part.r for part in parts}) > 1 or len(set(largest)) > 1:
        raise AdapterError(f"combine: expected equal ranks for {kind!r}, got {ranks} ({name}); use 'cat' or 'svd'")
    root = np.sqrt(np.abs(shares))  # the sign goes to one side only
    a = rule([part.A for part in parts], root * np.where(shares >= 0, 1, -1))
    return MatrixArrays(a, rule([part.B for part in parts], root), 1.0)


def _concatenate(parts: list[MatrixArrays], shares: NDArray[np.float64], rank: int) -> MatrixArrays:
    """[w s A; ...], [B, ...], filled up with zeros to the rank that all matrices of the result have."""
    a = np.concatenate([np.float32(share) * part.A for part, share in zip(parts, shares, strict=True)])
    b = np.concatenate([part.B for part in parts], axis=1)
    missing = rank - len(a)
    return MatrixArrays(np.pad(a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing))), 1.0)


def _low_rank_svd(parts: list[MatrixArrays], shares: NDArray[np.float64]) -> tuple[F32, F32, F32]:
    """The decomposition of sum w s B A without the (out, in) matrix: its factors are thin."""
    qb, rb = np.linalg.qr(np.concatenate([part.B for part in parts], axis=1))
    scaled = np.concatenate([np.float32(share) * part.A for part, share in zip(parts, shares, strict=True)])
    qa, ra = np.linalg.qr(scaled.T)
    u, s, vt = np.linalg.svd(rb @ ra.T, full_matrices=False)
    return qb @ u, s, vt @ qa.T


def _cut(u: F32, s: F32, vt: F32, rank: int, clamp: float | None) -> MatrixArrays:
    """B = U S and A = V^T of the largest `rank` directions, zeros where there are fewer."""
    b, a = u[:, :rank] * s[:rank], vt[:rank]
    if clamp is not None:
        bound = np.float32(np.quantile(np.concatenate([b.ravel(), a.ravel()]), clamp))
        a, b = np.clip(a, -bound, bound), np.clip(b, -bound, bound)
    missing = rank - len(a)
    a, b = np.pad(a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing)))
    return MatrixArrays(np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32), 1.0)


def _rule(name: str, how: Combination, generator: np.random.Generator) -> Callable[[list[F32], NDArray[np.float64]], F32]:
    """(tensors, weights) -> one tensor."""
    density = how.density if how.density is not None else 1.0
    keep: Callable[[F32], F32] = lambda tensor: tensor  # noqa: E731
    if name in ("ties", "magnitude_prune"):
        keep = partial(_keep_largest, density=density)
    elif name.startswith("dare"):
        keep = partial(_keep_random, density=density, generator=generator)
    mix = partial(_elected_mean, method=how.majority_sign_method) if name.endswith("ties") else _weighted_sum
    return lambda tensors, weights: mix(np.stack([keep(t) for t in tensors]), weights.astype(np.float32))


def _weighted_sum(stack: F32, weights: F32) -> F32:
    result: F32 = np.einsum("n...,n->...", stack, weights).astype(np.float32)
    return result


def _elected_mean(stack: F32, weights: F32, method: str) -> F32:
    """TIES: the mean of those weighted entries whose sign is the majority's; no entry of that sign gives 0."""
    signs = np.sign(stack)
    votes = stack.sum(axis=0) if method == "total" else signs.sum(axis=0)
    agree = signs == np.where(votes >= 0, 1, -1)
    weighted = stack * weights.reshape(-1, *[1] * (stack.ndim - 1))
    result: F32 = ((weighted * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)).astype(np.float32)
    return result


def _keep_largest(tensor: F32, density: float) -> F32:
    if density >= 1:
        return tensor
    count = int(density * tensor.size)
    kept = np.zeros(tensor.size, np.float32)
    if count:
        at = np.argpartition(-np.abs(tensor).ravel(), count - 1)[:count]
        kept[at] = tensor.ravel()[at]
    return kept.reshape(tensor.shape)


def _keep_random(tensor: F32, density: float, generator: np.random.Generator) -> F32:
    if density >= 1:
        return tensor
    kept: F32 = (tensor * (generator.random(tensor.shape) < density) / np.float32(density)).astype(np.float32)
    return kept


def _config(first: LoraConfig, matrices: dict[str, MatrixArrays], architecture: Architecture) -> LoraConfig:
    """A plain configuration: alpha = r, so that the scale is 1."""
    ranks = {name: matrix.r for name, matrix in matrices.items()}
    r = max(ranks.values())
    others = {name: rank for name, rank in ranks.items() if rank != r}
    modules = {spec.name: spec.module for spec in architecture.weights()}
    return LoraConfig(
        r=r,
        lora_alpha=r,
        lora_dropout=first.lora_dropout,
        target_modules=describe_targets(matrices, architecture),
        rank_pattern={f"^{modules[name].replace('.', '[.]')}": rank for name, rank in others.items()},
        alpha_pattern={f"^{modules[name].replace('.', '[.]')}": rank for name, rank in others.items()},
        fan_in_fan_out=first.fan_in_fan_out,
        seed=first.seed,
    )
