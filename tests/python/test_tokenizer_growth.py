"""A tokenizer.json that multiplies texts is refused when it is read; what files do in earnest is not."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lora_c
from lora_c.errors import CheckpointError
from lora_c.text.tokenizer import Tokenizer

BASE = Path(str(lora_c.__file__)).parent / "base_model"


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


@pytest.fixture
def with_part(tmp_path: Path) -> Callable[[str, Any], Tokenizer]:
    def make(part: str, value: Any) -> Tokenizer:
        shutil.copytree(BASE, tmp_path / "m")
        file = tmp_path / "m" / "tokenizer.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {part: value}))
        return Tokenizer.from_folder(tmp_path / "m")

    return make


BOMBS = {
    "forty times two letters for one": sequence(*[replace("a", "aa")] * 40),
    "in turns": sequence(*[replace("a", "bb"), replace("b", "aa")] * 20),
    "between all characters": sequence(*[replace("", "a", "Regex")] * 40),
    "expressions that may match nothing": sequence(*[replace("a*", "xx", "Regex")] * 12),
    "expressions": sequence(*[replace("[ab]", "ab", "Regex")] * 40),
    "one long text": replace("a", "b" * 100_000),
    "through another step": sequence(*[replace("a", "AA"), {"type": "Lowercase"}] * 20),
    "in a sequence of a sequence": sequence(sequence(*[replace("a", "aa")] * 20), sequence(*[replace("a", "aa")] * 20)),
    "before every text": sequence(*[{"type": "Prepend", "prepend": "a" * 1000}] * 20),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_normalizer_that_multiplies_is_refused(name: str, with_part: Callable[[str, Any], Tokenizer]) -> None:
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="tokenizer.json: .*expected steps that .* at most .* got"):
        with_part("normalizer", BOMBS[name])
    assert time.perf_counter() - start < 5


def test_a_decoder_and_a_post_processor_that_multiply_are_refused(
    tmp_path: Path, with_part: Callable[[str, Any], Tokenizer]
) -> None:
    decoder = {"type": "Sequence", "decoders": [replace("a", "aa")] * 40 + [{"type": "Fuse"}]}
    with pytest.raises(CheckpointError, match="decoder: expected steps"):
        with_part("decoder", decoder)
    shutil.rmtree(tmp_path / "m")
    end = {"id": "</s>", "ids": [2] * 100, "tokens": ["</s>"] * 100}
    pieces = [{"Sequence": {"id": "A", "type_id": 0}}, *[{"SpecialToken": {"id": "</s>", "type_id": 0}}] * 1000]
    template = {"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": {"</s>": end}}
    with pytest.raises(CheckpointError, match="add at most 10,000 to a text, got 101,000"):
        with_part("post_processor", template)


USUAL = {
    "a table of spellings": sequence(*[replace(chr(0xC0 + i), "abc") for i in range(60)]),
    "spaces": sequence(*[replace(" {2,}", " ", "Regex"), replace(r"\s+", " ", "Regex"), replace("``", '"')] * 10),
    "Llama": sequence({"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")),
    "punctuation": sequence(replace("…", "..."), {"type": "NFKC"}, {"type": "Lowercase"}, replace("½", "1/2")),
    "nothing": None,
}


@pytest.mark.parametrize("name", USUAL)
def test_what_files_do_in_earnest_is_read(name: str, with_part: Callable[[str, Any], Tokenizer]) -> None:
    assert with_part("normalizer", USUAL[name]).encode("a b")
