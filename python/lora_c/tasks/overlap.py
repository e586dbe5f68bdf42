"""How much of a reference an answer says: exact match and F1 over words, ROUGE-L and BLEU by their own libraries.

Where an example has several references, the one that agrees best counts; in BLEU all of them, as sacrebleu does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from ..errors import ConfigError
from .normalizing import Normalizer
from .scores import Score, mean_score

EXTRA = "pip install 'lora-c[eval]'"


def exact_match(answer: str, references: Sequence[str], normalize: Normalizer) -> float:
    """1 where the answer is one of the references; what says nothing to compare is never one."""
    said = normalize(answer)
    return float(said is not None and any(said == normalize(reference) for reference in references))


def word_f1(answer: str, references: Sequence[str], normalize: Normalizer) -> float:
    """The harmonic mean of the shares of common words, each as often as both have it (arXiv:1606.05250).

    An answer without words agrees with a reference without words only.
    """
    return max(_f1((normalize(answer) or "").split(), (normalize(reference) or "").split()) for reference in references)


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2.0 * common / (len(answer) + len(reference))


class RougeL:
    """The F-measure of the longest common subsequence, of each text or of several; from the package rouge-score.

    Raises
    ------
    ConfigError
        It is not installed.
    """

    def __init__(self) -> None:
        scorer = _module("rouge_score.rouge_scorer", "rouge-l", "rouge-score")
        self._scorer = scorer.RougeScorer(["rougeL"], use_stemmer=False)

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        return max(float(self._scorer.score(reference, answer)["rougeL"].fmeasure) for reference in references)


class Bleu:
    """BLEU over a set, from 0 to 100, and of each example what it adds to it; from the package sacrebleu.

    Raises
    ------
    ConfigError
        It is not installed.
    """

    def __init__(self) -> None:
        bleu = _module("sacrebleu.metrics.bleu", "bleu", "sacrebleu")
        self._bleu = bleu.BLEU()
        self._sentence = bleu.BLEU(effective_order=True)

    def counts(self, answer: str, references: Sequence[str]) -> list[float]:
        """Matches and n-grams of four orders, words of the answer and of the reference of the nearest length."""
        found = self._bleu.corpus_score([answer], [[reference] for reference in references])
        return [*map(float, found.counts), *map(float, found.totals), float(found.sys_len), float(found.ref_len)]

    def of_one(self, answer: str, references: Sequence[str]) -> float:
        """Of one example alone, with the orders that it is long enough for."""
        return float(self._sentence.sentence_score(answer, list(references)).score)

    def score(self, counts: Sequence[Sequence[float]]) -> Score:
        """Of a set, whose examples have these counts."""
        return Score(np.asarray(counts, np.float64), self._of_sums)

    def _of_sums(self, sums: Any) -> float:
        whole = [int(number) for number in sums]
        found = self._bleu.compute_bleu(
            correct=whole[:4], total=whole[4:8], sys_len=whole[8], ref_len=whole[9], smooth_method="exp"
        )
        return float(found.score)


def text_scores(
    task: str, answers: Sequence[str], references: Sequence[Sequence[str]], normalize: Normalizer
) -> tuple[dict[str, Score], list[dict[str, Any]]]:
    """The scores of a task whose answers were written, and those of each example; `compared`: what of an answer counts.

    Parameters
    ----------
    task : str
        "exact-match", "f1", "rouge-l" or "bleu".
    """
    pairs = list(zip(answers, references, strict=True))
    if task == "bleu":
        bleu = Bleu()
        each: list[dict[str, Any]] = [{"bleu": bleu.of_one(*pair)} for pair in pairs]
        return {"bleu": bleu.score([bleu.counts(*pair) for pair in pairs])}, each
    if task == "rouge-l":
        rouge = RougeL()
        each = [{"rouge_l": rouge(*pair)} for pair in pairs]
    elif task == "f1":
        each = [{"f1": word_f1(*pair, normalize), "exact_match": exact_match(*pair, normalize)} for pair in pairs]
    else:
        each = [{"exact_match": exact_match(*pair, normalize)} for pair in pairs]
    scores = {name: mean_score([one[name] for one in each]) for name in each[0]}
    if task == "rouge-l":
        return scores, each
    return scores, [{"compared": normalize(answer), **one} for answer, one in zip(answers, each, strict=True)]


def _module(name: str, task: str, package: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise ConfigError(
            f"task: expected the package {package} for {task}, got an installation without it; {EXTRA}"
        ) from None
