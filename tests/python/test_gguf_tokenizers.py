"""Tokenizers of every kind through a GGUF file: the same ids, or refused by name before anything is written."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_tokenizers import ROWS, SPECIAL, Case, all_cases, write_folder

import lora_c as lc
from lora_c.errors import CheckpointError
from lora_c.gguf import write_model

COUNT = 4000
ALPHABETS = (
    "abcXYZ éßÅ'’.,;", "0123456789 .,%$-", "абвГДЕ ", "日本語の 漢字、。", "한국어 텍스트 ", "عربي नमस्ते ไทย",
    "🙂👍🏽🇩🇪 ❤️", "\t\n\r  \u00a0\u3000 x",
    "{}[]()<>=+*/\\|&^~`#@!?\"'_ab ", "ａｂ①²Ⅳﬁ e\u0301a\u0308",
)  # fmt: skip


@pytest.fixture(scope="session")
def corpus(shared_data: Callable[[str], Path]) -> list[str]:
    """Lines of stories, sums, questions to tables and plays."""
    stories = (shared_data("tinystories") / "tinystories_sample.txt").read_text(encoding="utf-8").splitlines()
    plays = (shared_data("tinyshakespeare") / "input.txt").read_text(encoding="utf-8").splitlines()
    sums = [json.loads(line) for line in (shared_data("gsm8k") / "train.jsonl").read_text(encoding="utf-8").splitlines()[:800]]
    tables = [
        json.loads(line) for line in (shared_data("wikisql") / "train.jsonl").read_text(encoding="utf-8").splitlines()[:700]
    ]
    lines = stories[:900] + plays[:800] + [sum["answer"] for sum in sums[:800]] + [table["text"] for table in tables[:700]]
    return [line[:60] for line in lines]


@pytest.fixture(scope="session")
def lines(corpus: list[str]) -> list[str]:
    """The corpus and random lines of many scripts with special tokens in them."""
    rng = np.random.default_rng(10)
    found = list(corpus)
    while len(found) < COUNT:
        parts = []
        for _ in range(rng.integers(1, 6)):
            letters = list(ALPHABETS[rng.integers(len(ALPHABETS))])
            parts.append("".join(rng.choice(letters, rng.integers(1, 12))))
            if rng.random() < 0.3:
                parts.append(str(rng.choice([*SPECIAL, "<|end|>", "<think>", "zebra", "little"])))
        found.append("".join(parts))
    return found


@pytest.fixture(scope="session")
def cases(corpus: list[str]) -> dict[str, Case]:
    """The cases by name."""
    return {case.name: case for case in all_cases(corpus)}


@pytest.mark.filterwarnings("ignore:.*the ends of an answer differ:lora_c.notices.LoraCWarning")  # one config.json for all
def test_forty_tokenizers_keep_their_ids_or_are_refused_before_anything_is_written(
    cases: dict[str, Case], lines: list[str], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_model(vocab_size=ROWS)
    out = tmp_path / "out"
    out.mkdir()
    problems, accepted, refused = [], 0, 0
    for case in cases.values():
        write_folder(folder, case)
        model = lc.load_model(folder, progress=False)
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                write_model(out / "m.gguf", model, "F32")
        except CheckpointError as error:
            refused += 1
            if case.refused is None or not re.search(case.refused, str(error)):
                problems.append(f"{case.name}: {error}")
            assert not list(out.iterdir())
            continue
        accepted += 1
        assert [case.name for _ in told] == (["qwen2"] if case.name == "qwen2" else [])
        again = lc.load_model(out / "m.gguf", progress=False).tokenizer
        (out / "m.gguf").unlink()
        if case.refused is not None:
            problems.append(f"{case.name}: written, expected {case.refused}")
        ours, theirs = (t.backend.encode_batch_fast(lines) for t in (model.tokenizer, again))
        other = [line for line, want, got in zip(lines, ours, theirs, strict=True) if want.ids != got.ids]
        problems += [f"{case.name}: other ids for {other[0]!r} and {len(other) - 1} more"] if other else []
        assert again.special_tokens == model.tokenizer.special_tokens
    assert not problems, "\n".join(problems)
    assert accepted >= 24 and refused >= 30 and len(lines) == COUNT


def test_lines_tell_apart_what_is_refused(cases: dict[str, Case], lines: list[str]) -> None:
    """The lines see a change of ids in most of the refused kinds, so that equal ids on them mean something."""
    plain = cases["gpt-2"].build().encode_batch_fast(lines, add_special_tokens=False)
    for name in (
        "prefix space",
        "whole texts",
        "another split",
        "punctuation apart",
        "rstrip",
        "lstrip",
        "single_word of a word",
    ):
        other = cases[name].build().encode_batch_fast(lines, add_special_tokens=False)
        assert sum(a.ids != b.ids for a, b in zip(plain, other, strict=True)) > 20, name
