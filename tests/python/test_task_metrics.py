"""What answers are worth: normalized texts, exact match, F1, ROUGE-L, BLEU, and intervals of differences."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from lora_c.errors import ConfigError
from lora_c.tasks import TaskOptions, check_task
from lora_c.tasks.normalizing import normalizer, number_of
from lora_c.tasks.overlap import exact_match, text_scores, word_f1
from lora_c.tasks.scores import mean_score, paired_difference, ratio_score

# --- what counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("names", "text", "expected"), [
    ("none", " The  Cat! ", " The  Cat! "), ("space", " The  Cat! ", "The Cat!"), ("case", "The Cat", "the cat"),
    ("punctuation", "it's (so) 1,000.", "its so 1000"), ("squad", "  The cat, an  Owl and a theatre. ", "cat owl and theatre"),
    (["space", "case"], " A  B", "a b"), ("space,case", " A  B", "a b"), ("squad", "A-An-the", "aanthe"),
])  # fmt: skip
def test_steps_take_away_what_does_not_count(names: Any, text: str, expected: str) -> None:
    assert normalizer(names)(text) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("He has 3 - 1 = 2.\n#### 1,234", "1234"), ("#### $18.00 of them 7", "18"), ("so 12 apples, or 3.50 each.", "3.5"),
    ("-7", "-7"), ("from 3-4", "4"), ("costs -$5", "-5"), ("0.0", "0"), ("-0", "0"), ("1,000,000.", "1000000"), (".5", "0.5"),
    ("5,6", "6"), ("none at all", None), ("#### none", None), ("", None),
])  # fmt: skip
def test_the_number_that_a_text_ends_in(text: str, expected: str | None) -> None:
    assert number_of(text) == expected


def test_unknown_steps_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="normalize: expected some of none, squad, .* got 'articls'.*articles"):
        normalizer("articls")
    with pytest.raises(ConfigError, match="none alone"):
        normalizer("none,case")


# --- one answer ----------------------------------------------------------------------------------------------------------


def test_exact_match_is_with_any_reference() -> None:
    plain, number = normalizer("space"), normalizer("gsm8k")
    assert exact_match(" Paris ", ["London", "Paris"], plain) == 1.0
    assert exact_match("paris", ["Paris"], plain) == 0.0
    assert exact_match("It is 1,000 dollars.", ["7 * 2\n#### 1000"], number) == 1.0
    assert exact_match("nothing", ["nothing"], number) == 0.0  # no number agrees with none


@pytest.mark.parametrize(("answer", "references", "expected"), [
    ("The cat sat on the mat.", ["a cat sat"], 2 * 2 / (4 + 2)), ("cat", ["dog"], 0.0), ("the", ["a"], 1.0),
    ("", ["cat"], 0.0), ("cat cat dog", ["cat dog dog"], 2 * 2 / 6), ("red fox", ["fox", "a red fox"], 1.0),
])  # fmt: skip
def test_f1_of_words_counts_each_as_often_as_both_have_it(answer: str, references: list[str], expected: float) -> None:
    assert word_f1(answer, references, normalizer("squad")) == pytest.approx(expected, abs=1e-15)


# --- libraries -----------------------------------------------------------------------------------------------------------

ANSWERS = ["the cat sat on the mat today", "there is a dog", "hello", "it rains in the evening and at night"]
REFERENCES = [
    ["the cat sat on a mat today", "a cat was on the mat"], ["there is a big dog here"], ["hello world"],
    ["it rains in the evening and in the night", "at night it rains"],
]  # fmt: skip


def test_rouge_l_is_that_of_rouge_score() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    scores, each = text_scores("rouge-l", ANSWERS, REFERENCES, normalizer("none"))
    expected = [
        scorer.score_multi(references, answer)["rougeL"].fmeasure
        for answer, references in zip(ANSWERS, REFERENCES, strict=True)
    ]
    assert [one["rouge_l"] for one in each] == expected and scores["rouge_l"].value == pytest.approx(np.mean(expected))
    (by_hand,) = text_scores("rouge-l", ["the cat sat"], [["the cat was"]], normalizer("none"))[1]
    assert by_hand["rouge_l"] == pytest.approx(2 / 3)  # two words of three in order, on both sides


def test_bleu_of_a_set_is_that_of_sacrebleu_and_is_computed_of_sums() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    scores, each = text_scores("bleu", ANSWERS, REFERENCES, normalizer("none"))
    streams = [[references[i] if i < len(references) else None for references in REFERENCES] for i in range(2)]
    assert scores["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(ANSWERS, streams).score, rel=1e-12)
    drawn = [0, 0, 3, 1]
    again = scores["bleu"].of_sums(np.bincount(drawn, minlength=4).astype(float) @ scores["bleu"].sums)
    picked = [ANSWERS[i] for i in drawn], [[stream[i] for i in drawn] for stream in streams]
    assert again == pytest.approx(sacrebleu.corpus_bleu(*picked).score, rel=1e-12)
    for i in range(4):  # "hello" is too short for four orders
        assert each[i]["bleu"] == pytest.approx(sacrebleu.sentence_bleu(ANSWERS[i], REFERENCES[i]).score)
    few = ["a cat sat down"], [["a cat ran off"]]  # no three words in a row agree: smoothed
    smoothed = text_scores("bleu", *few, normalizer("none"))[0]["bleu"].value
    assert smoothed == pytest.approx(sacrebleu.corpus_bleu(few[0], few[1]).score) and smoothed > 1
    identical = ["one two three four five"]
    assert text_scores("bleu", identical, [identical], normalizer("none"))[0]["bleu"].value == pytest.approx(100.0)


@pytest.mark.parametrize(("task", "module", "package"), [
    ("rouge-l", "rouge_score.rouge_scorer", "rouge-score"), ("bleu", "sacrebleu.metrics.bleu", "sacrebleu"),
])  # fmt: skip
def test_a_library_that_is_absent_is_named_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, task: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"task: expected the package {package} for {task}, .*lora-c\[eval\]"):
        check_task(task, TaskOptions())
    check_task("f1", TaskOptions())


# --- intervals -----------------------------------------------------------------------------------------------------------


def test_the_interval_is_the_quantiles_of_resampled_differences() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.normal(size=30), generator.normal(size=30) + 0.3
    found = paired_difference(mean_score(first), mean_score(second), resamples=200, seed=7, level=0.9)
    draws = np.random.Generator(np.random.Philox(key=[7, 0]))
    means = [np.mean((second - first)[draws.integers(0, 30, 30)]) for _ in range(200)]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.05, 0.95])), abs=1e-12)
    assert found.value == pytest.approx(np.mean(second - first)) and found.level == 0.9
    assert found == paired_difference(mean_score(first), mean_score(second), resamples=200, seed=7, level=0.9)
    assert found != paired_difference(mean_score(first), mean_score(second), resamples=200, seed=8, level=0.9)


def test_of_many_values_it_is_the_normal_one() -> None:
    """The mean of n values has the standard deviation of one by the square root of n; 95 % lie within 1.96 of it."""
    generator = np.random.default_rng(0)
    first = generator.normal(size=1000)
    second = first + 0.5 + 0.1 * generator.normal(size=1000)
    found = paired_difference(mean_score(first), mean_score(second), resamples=4000, seed=1)
    half = 1.959964 * np.std(second - first) / np.sqrt(1000)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)
    assert (found.high + found.low) / 2 == pytest.approx(found.value, abs=0.1 * half)
    assert found.is_clear and half < 0.01  # paired: each alone is known to 0.06
    assert paired_difference(mean_score(second), mean_score(first)).is_clear


def test_two_that_agree_differ_by_nothing() -> None:
    values = mean_score([0.0, 1.0, 1.0])
    found = paired_difference(values, values)
    assert (found.value, found.low, found.high, found.is_clear) == (0.0, 0.0, 0.0, False)


def test_a_ratio_is_one_of_sums_and_not_a_mean_of_ratios() -> None:
    score = ratio_score([2.0, 30.0], [1.0, 10.0], lambda mean: 10 * mean)
    assert score.value == pytest.approx(10 * 32 / 11)
    one, other = ratio_score([2.0, 30.0], [1.0, 10.0], float), ratio_score([1.0, 20.0], [1.0, 10.0], float)
    found = paired_difference(one, other, resamples=500)
    assert found.value == pytest.approx(21 / 11 - 32 / 11)
    assert (found.low, found.high) == pytest.approx((-1.0, -1.0))  # in every drawn set it is one less per token


@pytest.mark.parametrize(("options", "name"), [({"resamples": 1}, "resamples"), ({"level": 1.0}, "level")])
def test_options_beyond_their_bounds_are_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: expected"):
        paired_difference(mean_score([1.0]), mean_score([1.0]), **options)
    with pytest.raises(ConfigError, match="second: expected a score of the 1 examples"):
        paired_difference(mean_score([1.0]), mean_score([1.0, 2.0]))
