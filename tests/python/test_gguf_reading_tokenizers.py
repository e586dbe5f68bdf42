"""Tokenizers of GGUF files, read as llama.cpp reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import PIECES, TYPES, pieces, write_file

import lora_c as lc
from lora_c.gguf.format import Kind
from lora_c.gguf.reader import GGUFFile
from lora_c.gguf.splits import SPLITS
from lora_c.gguf.tokenizer import tokenizer_of
from lora_c.gguf.vocabulary import tokenizer_metadata
from lora_c.gguf.writer import array, boolean, text
from lora_c.text.tokenizer import Tokenizer

TEXTS = [
    "Hello world, it's 12345 o'clock",
    "  spaces\n\n\tand tabs ",
    "ÀÉÎ cafe\u0301 日本語 🙂",
    "I'LL don't WE'VE",
    "",
    "<|end|>x<|u|>",
]


def byte_level(split_name: str) -> Tokenizer:
    """A small byte-level tokenizer as a model's tokenizer.json would have it."""
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    split = SPLITS[split_name]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("l", "l"), ("h", "e"), ("he", "ll"), ("1", "2"), ("12", "3"), ("Ġ", "w"), ("o", "r"), ("'", "t"), ("Ġ", "Ġ")]
    vocabulary = {token: i for i, token in enumerate(alphabet + [a + b for a, b in merges] + ["hello"])}
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split.ignore_merges))
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.rule in ("gpt2", "digits"))
    steps: list[Any] = [own]
    if split.rule == "digits":
        steps = [pre_tokenizers.Digits(individual_digits=True), own]
    elif split.rule != "gpt2":
        steps = [pre_tokenizers.Split(Regex(split.rule), "isolated"), own]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.normalizer = normalizers.NFC() if split.nfc else None
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    backend.add_tokens([AddedToken("<|u|>", special=False, normalized=False)])
    return Tokenizer(backend, {"eos_token": "<|end|>"}, "{{ messages }}", "{{ tools }}")


@pytest.mark.parametrize("name", list(SPLITS))
def test_byte_level_tokenizer_round_trip(name: str, tmp_path: Path) -> None:
    ours = byte_level(name)
    values = {"general.architecture": text("llama")} | tokenizer_metadata(ours, ours.vocab_size + 3)
    same = [other for other, split in SPLITS.items() if split.rule == SPLITS[name].rule and split.nfc == SPLITS[name].nfc]
    assert values["tokenizer.ggml.pre"].data in same
    values["tokenizer.ggml.pre"] = text(name)
    again = tokenizer_of(GGUFFile(write_file(tmp_path / "t.gguf", values, {"a": np.zeros(1)})))
    assert again is not None and again.eos_token_id == ours.eos_token_id
    assert (again.chat_template, again.tool_template) == (ours.chat_template, ours.tool_template)
    for line in TEXTS:
        assert again.encode(line) == ours.encode(line), line
        assert again.decode(again.encode(line)) == ours.decode(ours.encode(line))
        assert again.decode(ours.encode(line), skip_special_tokens=False) == ours.decode(
            ours.encode(line), skip_special_tokens=False
        )


def test_packaged_tokenizer_round_trip(tmp_path: Path) -> None:
    folder = Path(lc.__file__ or "").parent / "base_model"
    ours = Tokenizer.from_folder(folder)
    values = tokenizer_metadata(ours, ours.vocab_size)
    again = tokenizer_of(GGUFFile(write_file(tmp_path / "t.gguf", values, {"a": np.zeros(1)})))
    assert again is not None
    for line in TEXTS:
        assert again.encode(line) == ours.encode(line), line
    assert again.chat_template == ours.chat_template


def ids(*names: str) -> list[int]:
    return [PIECES.index(name) for name in names]


def test_a_space_stands_before_the_text_and_behind_every_special_token(tmp_path: Path) -> None:
    tokenizer = pieces(tmp_path)
    assert tokenizer.encode("ab") == ids("<s>", "▁ab")
    assert tokenizer.encode("a<u>ab</s>b") == ids("<s>", "▁a", "<u>", "▁ab", "</s>", "▁", "b")
    assert tokenizer.encode(" a") == ids("<s>", "▁", "▁a")
    without = pieces(tmp_path, add_space_prefix=boolean(False))
    assert without.encode("ab<u>a b") == ids("<s>", "ab", "<u>", "a", "▁", "b")


def test_pairs_are_merged_in_the_order_of_scores_of_what_they_become(tmp_path: Path) -> None:
    scores = np.array([0.0] * 262 + [-2.0, -1.0, -3.0, 0.0], np.float32)
    assert pieces(tmp_path).encode("ab", add_special_tokens=False) == ids("▁ab")
    scores[PIECES.index("▁a")] = -0.5
    first = pieces(tmp_path, scores=array(scores, Kind.FLOAT32))
    assert first.encode("abb", add_special_tokens=False) == ids("▁ab", "b")
    unused = np.array(TYPES, np.int32)
    unused[PIECES.index("ab")] = 5  # a kind that does not keep a pair from being merged
    assert pieces(tmp_path, token_type=array(unused, Kind.INT32)).encode("bab") == ids("<s>", "▁", "b", "ab")


def test_what_stands_around_a_text_follows_the_flags_and_their_defaults(tmp_path: Path) -> None:
    assert pieces(tmp_path, drop="bos_token_id").encode("a") == ids("<s>", "▁a")
    both = pieces(tmp_path, add_bos_token=boolean(False), add_eos_token=boolean(True))
    assert both.encode("a") == ids("▁a", "</s>") and both.encode("") == ids("</s>")


def test_files_named_after_phi_3_take_spaces_behind_special_tokens_away(tmp_path: Path) -> None:
    names = [*PIECES[:-1], "<|endoftext|>", "<|user|>"]
    kinds = np.array([*TYPES[:-1], 3, 3], np.int32)
    values = {
        "general.name": text("My Phi-3 mini"), "tokenizer.ggml.model": text("llama"),
        "tokenizer.ggml.tokens": array(names, Kind.STRING),
        "tokenizer.ggml.token_type": array(kinds, Kind.INT32), "tokenizer.ggml.add_bos_token": boolean(False),
    }  # fmt: skip
    found = tokenizer_of(GGUFFile(write_file(tmp_path / "t.gguf", values, {"a": np.zeros(1)})))
    values["general.name"] = text("another")
    other = tokenizer_of(GGUFFile(write_file(tmp_path / "t.gguf", values, {"a": np.zeros(1)})))
    assert found is not None and other is not None
    space = names.index("▁")
    for special, stripped in (("<|user|>", True), ("</s>", True), ("<s>", False), ("<unk>", False), ("<|endoftext|>", False)):
        with_space = [names.index(special), space, space, names.index("a")]
        assert other.encode(f"{special} a")[:2] == with_space[:2]
        assert (len(found.encode(f"{special} \n a")) < len(other.encode(f"{special} \n a"))) == stripped, special


def test_ids_that_only_fill_up_the_embedding_have_no_text(tmp_path: Path) -> None:
    names = [*PIECES, "[PAD266]", "<unused>"]
    kinds = array(np.array([*TYPES, 5, 5], np.int32), Kind.INT32)
    scores = array(np.zeros(len(names), np.float32), Kind.FLOAT32)
    tokenizer = pieces(tmp_path, tokens=array(names, Kind.STRING), token_type=kinds, scores=scores)
    assert tokenizer.decode([262, 266, 261]) == "ab" and tokenizer.token_to_id("[PAD266]") is None
    assert tokenizer.token_to_id("<unused>") == 267


def test_texts_that_end_a_generation_are_control_tokens_whatever_the_file_says(tmp_path: Path) -> None:
    names = [*PIECES[:-1], "<|im_end|>"]
    kinds = array(np.array([*TYPES[:-1], 1], np.int32), Kind.INT32)
    tokenizer = pieces(tmp_path, tokens=array(names, Kind.STRING), token_type=kinds)
    assert tokenizer.encode("a<|im_end|>") == [*ids("<s>", "▁a"), 265] and tokenizer.decode([262, 265]) == "a"
