"""How likely a model finds texts that are given: choices behind their prompt, and the sequences of a data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.batching import pack, token_groups
from ..data.samples import Sample
from .prompts import Continued
from .scores import Score, mean_score, ratio_score

if TYPE_CHECKING:
    from ..data.questions import Question
    from ..model.model import Model

Progress = Callable[[int, int], None]  # examples done, and of how many


def _silent(done: int, total: int) -> None:
    """Nobody is told."""


def sample_losses(model: Model, samples: Iterable[Sample], max_tokens: int) -> Iterator[tuple[float, int]]:
    """Yield of each sequence the sum of its losses in nats, and how many tokens carry one.

    Parameters
    ----------
    max_tokens : int
        Of the sequences that share a pass.
    """
    for group in token_groups(samples, max_tokens):
        batch = pack(group)
        losses = np.zeros(batch.n_tokens, np.float32)
        model.decoder.loss(batch.input_ids, batch.cu_seqlens, batch.targets, batch.loss_weight, token_loss=losses)
        for begin, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
            counted = batch.loss_weight[begin:end] > 0
            yield float(losses[begin:end][counted].sum(dtype=np.float64)), int(counted.sum())


def continued_sample(pair: Continued) -> Sample:
    """The sequence of a prompt and what follows it, which alone carries loss."""
    before, after = pair
    mask = np.zeros(len(before) + len(after), np.float32)
    mask[len(before) :] = 1.0
    return Sample(np.asarray([*before, *after], np.int32), mask)


def perplexity_scores(
    model: Model, samples: Sequence[Sample], max_tokens: int, progress: Progress = _silent
) -> tuple[dict[str, Score], list[dict[str, Any]]]:
    """Loss and perplexity over all tokens that carry loss, and of each sequence."""
    found = []
    for one in sample_losses(model, samples, max_tokens):
        found.append(one)
        progress(len(found), len(samples))
    losses, tokens = zip(*found, strict=True)
    scores = {
        "loss": ratio_score(losses, np.asarray(tokens, np.float64), lambda mean: mean),
        "perplexity": ratio_score(losses, np.asarray(tokens, np.float64), _exponential),
    }
    return scores, [{"tokens": n, "loss": loss / n} for loss, n in found]


def choice_scores(
    model: Model,
    questions: Sequence[Question],
    pairs: Sequence[Sequence[Continued]],
    max_tokens: int,
    progress: Progress = _silent,
) -> tuple[dict[str, Score], list[dict[str, Any]]]:
    """How often the likeliest choice is the right one: by its log-likelihood, and by that divided by its bytes.

    The second one (`accuracy_norm`) does not prefer short choices; bytes are those of the choice in UTF-8, without what stands
    between it and the prompt.
    """
    losses = sample_losses(model, (continued_sample(pair) for each in pairs for pair in each), max_tokens)
    each: list[dict[str, Any]] = []
    for question in questions:
        likelihoods = np.array([-next(losses)[0] for _ in question.choices])
        each.append(_chosen(question, likelihoods))
        progress(len(each), len(questions))
    return {name: mean_score([one[name] for one in each]) for name in ("accuracy", "accuracy_norm")}, each


def _chosen(question: Question, likelihoods: NDArray[np.float64]) -> dict[str, Any]:
    lengths = np.array([len(choice.encode("utf-8")) for choice in question.choices])
    chosen, chosen_norm = int(np.argmax(likelihoods)), int(np.argmax(likelihoods / lengths))
    return {
        "log_likelihoods": [float(value) for value in likelihoods],
        "chosen": chosen,
        "chosen_norm": chosen_norm,
        "accuracy": float(chosen == question.right),
        "accuracy_norm": float(chosen_norm == question.right),
    }


def _exponential(mean: float) -> float:
    return math.exp(mean) if mean < 700 else math.inf
