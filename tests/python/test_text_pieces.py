"""Text files: the ids of windows are those of the whole text, and each piece begins as the tokenizer begins a text."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lora_c import load_dataset
from lora_c.data import text_pieces
from lora_c.data.text_pieces import cut_pieces, tokenize
from lora_c.text.text_ids import begin_token_ids
from lora_c.text.tokenizer import Tokenizer


def blocks(text: str, size: int = 5000) -> Iterator[str]:
    yield from (text[i : i + size] for i in range(0, len(text), size))


def byte_level(text: str, trim_offsets: bool) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([text], trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False))
    made.post_processor = tokenizers.processors.ByteLevel(trim_offsets=trim_offsets)
    return made


def sentencepiece_bpe(text: str) -> tokenizers.Tokenizer:
    """As Llama 2: no words at all, merges run over the whole text, and a prefix is put before it."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    lines = [line + "\n" for line in text.splitlines()]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>"], show_progress=False)
    made.train_from_iterator(lines[:3000], trainer)
    return made


def unigram(text: str) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=800, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    made.train_from_iterator(text.splitlines()[:2000], trainer)
    return made


KINDS: dict[str, Callable[[str], tokenizers.Tokenizer]] = {
    "byte-level": lambda text: byte_level(text, False),
    "byte-level, trimmed": lambda text: byte_level(text, True),
    "SentencePiece BPE": sentencepiece_bpe,
    "Unigram": unigram,
}


@pytest.fixture(scope="module")
def texts(shared_data: Callable[[str], Path]) -> dict[str, str]:
    shakespeare = (shared_data("tinyshakespeare") / "input.txt").read_text(encoding="utf-8")[:200_000]
    stories = (shared_data("tinystories") / "tinystories_sample.txt").read_text(encoding="utf-8")[:200_000]
    rng = random.Random(0)
    pieces = ["\n", "\n\n", "  ", " ", "\t", "grüße", "日本", "🦙", "word", "don't", "12,345", "....", "\n \n", "a" * 30]
    return {
        "shakespeare": shakespeare,
        "stories": stories,
        "one line": shakespeare.replace("\n", " "),
        "wild": "".join(rng.choice(pieces) for _ in range(40_000)),
        "one word": "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(60_000)),
        "one letter": "a" * 50_001,
        "three letters": "abc" * 20_000,
        "no spaces": "".join(rng.choice("日本語文字。、") for _ in range(30_000)),
    }


@pytest.mark.parametrize("kind", [*KINDS, "stories260K"])
def test_windows_give_the_ids_of_the_whole_text(texts, stories, monkeypatch, kind: str) -> None:
    monkeypatch.setattr(text_pieces, "WINDOW", 1 << 13)
    tokenizer = Tokenizer.from_folder(stories) if kind == "stories260K" else Tokenizer(KINDS[kind](texts["shakespeare"]))
    for name, text in texts.items():
        parts = list(tokenize(blocks(text), tokenizer))
        whole = tokenizer.encode(text, add_special_tokens=False)
        assert np.concatenate(parts).tolist() == whole, name
        assert len(parts) > 3 or "letter" in name or len(whole) < 10, name


def test_pieces_hold_every_token_once_and_begin_as_a_text_begins() -> None:
    ids = np.arange(100, 123, dtype=np.int32)
    for size in (1, 4, 23):
        for length in (2, 5, 24, 100):
            parts = [ids[i : i + size] for i in range(0, 23, size)]
            plain = list(cut_pieces(parts, length, []))
            assert np.concatenate(plain).tolist() == ids.tolist()
            assert [len(piece) for piece in plain[:-1]] == [length] * (len(plain) - 1)
            begun = list(cut_pieces(parts, length, [1]))
            assert all(piece[0] == 1 for piece in begun)
            assert np.concatenate([piece[1:] for piece in begun]).tolist() == ids.tolist()
            assert [len(piece) for piece in begun[:-1]] == [length] * (len(begun) - 1)
    with_its_own = [np.array([1, 7, 8, 1, 9], np.int32)]
    assert [piece.tolist() for piece in cut_pieces(with_its_own, 3, [1])] == [[1, 7, 8], [1, 9]]


def test_a_text_file_begins_as_the_tokenizer_begins_a_text(stories: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(stories)
    begin = begin_token_ids(tokenizer)
    assert begin == [tokenizer.bos_token_id]
    text = "Once upon a time there was a girl.\r\nShe ran.\r"
    (tmp_path / "a.txt").write_bytes(text.encode())
    ids = tokenizer.encode("Once upon a time there was a girl.\nShe ran.\n", add_special_tokens=False)
    data = load_dataset(tmp_path / "a.txt", tokenizer, max_seq_length=8)
    assert all(sample.input_ids[0] == begin[0] and not sample.loss_mask[0] for sample in data.samples)
    assert np.concatenate([sample.input_ids[1:] for sample in data.samples]).tolist() == ids
    assert data.n_predicted == len(ids)
    assert "each piece of text begins with <s>" in data.report()
    assert data[1].where == f"{tmp_path / 'a.txt'}, piece 2"


def test_pieces_of_a_text_share_their_mask(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Once upon a time. " * 200, encoding="utf-8")
    data = load_dataset(tmp_path / "a.txt", Tokenizer.from_folder(stories), max_seq_length=16)
    assert data[0].loss_mask is data[1].loss_mask and not data[0].loss_mask.flags.writeable
