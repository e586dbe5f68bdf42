"""The choice of a token: the largest logit, or a draw after temperature, top_k, top_p, min_p and typical_p, in that order."""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

from ..configs import GenerationConfig
from ..errors import CheckpointError, ConfigError

F64 = NDArray[np.float64]


def probabilities(logits: NDArray[np.float32], config: GenerationConfig) -> F64:
    """Return the distribution to draw from, in float64.

    Shapes
    ------
    logits (V,), result (V,)

    Source
    ------
    nucleus sampling, arXiv:1904.09751; min-p, arXiv:2407.01082; locally typical sampling, arXiv:2202.00666
    """
    scores = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature leaves the largest alone
        scores = (scores - scores.max()) / config.temperature
    if 0 < config.top_k < scores.size:
        scores[scores < np.partition(scores, -config.top_k)[-config.top_k]] = -np.inf
    weights = _softmax(scores)
    if config.top_p < 1.0:
        order = np.argsort(-weights, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]
        weights[order[before >= config.top_p]] = 0.0
        weights /= weights.sum()
    if config.min_p > 0.0:
        weights[weights < config.min_p * weights.max()] = 0.0
        weights /= weights.sum()
    return _typical(weights, config.typical_p) if config.typical_p < 1.0 else weights


def _softmax(scores: F64) -> F64:
    weights: F64 = np.exp(scores - scores.max())
    weights /= weights.sum()
    return weights


def _typical(weights: F64, mass: float) -> F64:
    """Keep the tokens whose information is nearest to the entropy, until they have this share."""
    with np.errstate(divide="ignore"):
        information = -np.log(weights)
    entropy = float((weights[weights > 0] * information[weights > 0]).sum())
    distance = np.abs(information - entropy)
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(weights[order]) < mass).sum()), weights.size - 1)
    kept: F64 = np.where(distance > distance[order[last]], 0.0, weights)
    kept /= kept.sum()
    return kept


def choose_token(logits: NDArray[np.float32], config: GenerationConfig, generator: np.random.Generator) -> int:
    """Return the next token: the first of the largest logits, or a draw.

    Raises
    ------
    ConfigError
        Every token is forbidden.
    """
    largest = int(logits.argmax())
    if logits[largest] == -np.inf:
        raise ConfigError(
            "logits: expected a token that may be written, got none; suppressed tokens, bad words and no_repeat_ngram_size "
            "leave nothing"
        )
    if not config.sampling:
        return largest
    bounds = np.cumsum(probabilities(logits, config))
    return min(int(np.searchsorted(bounds, generator.random() * bounds[-1], side="right")), logits.size - 1)


def with_seed(config: GenerationConfig) -> GenerationConfig:
    """Return the configuration with a seed drawn for it, where it samples and names none."""
    if not config.sampling or config.seed is not None:
        return config
    return config.model_copy(update={"seed": secrets.randbelow(2**32)})


def generator_of(config: GenerationConfig, repetition: int = 0) -> np.random.Generator:
    """Return what draws the tokens of an answer; each repetition of a prompt has a stream of its own."""
    seeds = np.random.SeedSequence(config.seed or 0, spawn_key=(repetition,) if repetition else ())
    return np.random.Generator(np.random.Philox(seeds))


def check_logits(logits: NDArray[np.float32]) -> None:
    """Refuse logits that are no numbers: every token would be as good as any other.

    Raises
    ------
    CheckpointError
        Some are NaN or positive infinity.
    """
    largest = float(logits.max())  # NaN where any is
    if largest != largest or largest == np.inf:
        bad = int((np.isnan(logits) | (logits == np.inf)).sum())
        raise CheckpointError(
            f"logits: expected finite numbers, got NaN or infinity for {bad} of {logits.size} tokens; the weights, the "
            "adapter or a penalty overflow: look at lora_alpha and the training loss, or generate without the adapter"
        )
