"""Stop texts: found with special tokens and without, and no part of them is given."""

from __future__ import annotations

import random
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from lora_c.configs import GenerationConfig
from lora_c.generation.answer_text import TextPieces
from lora_c.text.tokenizer import Tokenizer


def byte_level(skipped: bool = True) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(text, special=skipped, normalized=False) for text in ("<|end|>", "<|x|>")])
    return Tokenizer(backend)


def sentencepiece() -> Tokenizer:
    vocab = {"<unk>": 0} | {f"<0x{i:02X}>": i + 1 for i in range(256)} | {"▁": 257}
    for letter in "abcdefgh<|end>x ":
        vocab.setdefault(letter, len(vocab))
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in ("<|end|>", "<|x|>")])
    return Tokenizer(backend)


KINDS = {"byte level": byte_level, "byte fallback": sentencepiece}


def pieces_of(tokenizer: Tokenizer, ids: list[int], stops: Any, prompt: list[int] | None = None) -> tuple[list[str], bool]:
    text, pieces = TextPieces(tokenizer, prompt or [], GenerationConfig(stop_strings=stops)), []
    for token in ids:
        pieces.append(text.push(token))
        if text.stopped:
            return pieces, True
    pieces.append(text.flush())
    return pieces, text.stopped


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("answer", "stops", "right"),
    [
        ("ab<|end|>cd", ["<|end|>"], "ab"),
        ("ab <|end|>cd", "<|end|>", "ab "),
        ("a<|x|>b<|end|>cd", ["b<|end|>"], "a"),
        ("abc<|x|>def", ["cd"], "ab"),  # what is shown has the two side by side
        ("abc<|x|>def", ["c<|x|>d"], "ab"),
        ("a<|end|>bcd", ["bc", "<|end|>"], "a"),
        ("abcd", ["<|end|>", "", "x"], "abcd"),
        ("ab<|end|>", ["<|end|>x"], "ab"),
        ("ab日本cd", ["本c"], "ab日"),
        ("ab日", ["日"], "ab"),
        ("<|end|>ab", ["<|end|>"], ""),
    ],
)
def test_an_answer_ends_before_a_stop_text(kind: str, answer: str, stops: Any, right: str) -> None:
    tokenizer = KINDS[kind]()
    ids = tokenizer.encode(answer, add_special_tokens=False)
    pieces, stopped = pieces_of(tokenizer, ids, stops)
    assert "".join(pieces) == right
    assert stopped == (right != "abcd" and answer != "ab<|end|>")


def test_tokens_that_are_shown_are_found_too() -> None:
    tokenizer = byte_level(skipped=False)
    assert "".join(pieces_of(tokenizer, tokenizer.encode("ab<|end|>cd"), ["<|end|>"])[0]) == "ab"


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_never_show_what_is_cut_later(kind: str) -> None:
    tokenizer, rng = KINDS[kind](), random.Random(3)
    parts = ["a", "b", "ab", "<|x|>", "<|end|>", " ", "日", "👩‍👩", "ba"]
    found = 0
    for _ in range(1500):
        ids = tokenizer.encode("".join(rng.choice(parts) for _ in range(rng.randint(1, 12))), add_special_tokens=False)
        stops = ["".join(rng.choice(parts) for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(0, 2))]
        cut = rng.randint(0, len(ids))
        pieces, stopped = pieces_of(tokenizer, ids[cut:], stops, ids[:cut])
        stream = tokenizer.stream_decoder(ids[:cut])
        whole = "".join(stream.push(i) for i in ids[cut:]) + stream.flush()
        text = "".join(pieces)
        assert whole.startswith(text), (ids, cut, stops)
        assert stopped or text == whole
        assert not any(stop in text for stop in stops), (text, stops)
        found += stopped
    assert found > 150


def test_pieces_come_as_soon_as_they_are_certain() -> None:
    tokenizer = byte_level()
    assert pieces_of(tokenizer, tokenizer.encode("ab!c"), ["!x"])[0] == ["a", "b", "", "!c", ""]
