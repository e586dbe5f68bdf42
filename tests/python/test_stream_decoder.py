"""Pieces of a growing text joined are the text of the whole, wherever the prompt ends."""

from __future__ import annotations

import os.path
import random
from collections.abc import Callable

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from lora_c.text.tokenizer import Tokenizer

PARTS = [
    "日本語", "한국어", "ภาษาไทย", "e\u0301a\u0323\u0306", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "Füße", " the cat", " sat", "\n\n", "  ",
    "<|end|>", "ا\u0653ل", "\ufffd", "x", " .", " n't", "𝒳", "##", "\t",
]  # fmt: skip
MARK = AddedToken("<|end|>", special=True, normalized=False)


def byte_level() -> Backend:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("æ", "Ĺ"), ("Ģ", "ð")]
    for pair in merges:
        vocab["".join(pair)] = len(vocab)
    backend = Backend(models.BPE(vocab, merges))
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoders.ByteLevel(),
    )
    return backend


def sentencepiece(prefix: bool, metaspace: bool) -> Backend:
    vocab = {"<unk>": 0} | {f"<0x{i:02X}>": i + 1 for i in range(256)}
    for piece in ("▁", "t", "h", "e", "c", "a", "s", "x", "日", "th", "the", "▁the", "▁▁", "u", "n", "'", "."):
        vocab[piece] = len(vocab)
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "▁")]
    backend = Backend(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if prefix else "never", split=False)
        steps = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always" if prefix else "never")]
    else:
        first = [normalizers.Prepend("▁")] if prefix else []
        backend.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(steps)
    return backend


def unigram() -> Backend:
    letters = sorted({c for part in PARTS for c in part.replace(" ", "▁")} - {"<", "|", ">"})
    pieces = [("<unk>", -10.0), *((c, -5.0) for c in letters), ("▁", -4.0), ("▁the", -2.0), ("▁cat", -2.0), ("日本", -3.0)]
    backend = Backend(models.Unigram(list(dict(pieces).items()), unk_id=0))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return backend


def wordpiece() -> Backend:
    words = ["[UNK]", "the", "cat", "sat", "s", "##at", "x", "'", "t", "n", ".", "日", "本", "語", "F", "##ü", "##ß", "##e"]
    backend = Backend(models.WordPiece({text: i for i, text in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return backend


def words() -> Backend:
    texts = ["<unk>", "the", "cat", "sat", "x", "日本語", "한국어"]
    backend = Backend(models.WordLevel({text: i for i, text in enumerate(texts)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


KINDS: dict[str, Callable[[], Backend]] = {
    "byte level": byte_level,
    "byte fallback": lambda: sentencepiece(prefix=False, metaspace=False),
    "byte fallback, prefix": lambda: sentencepiece(prefix=True, metaspace=False),
    "byte fallback, Metaspace": lambda: sentencepiece(prefix=True, metaspace=True),
    "Unigram": unigram,
    "WordPiece": wordpiece,
    "WordLevel": words,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [True, False])
def test_pieces_joined_are_the_whole_at_every_cut(kind: str, skip: bool) -> None:
    backend = KINDS[kind]()
    backend.add_special_tokens([MARK])
    tokenizer = Tokenizer(backend)
    rng = random.Random(len(kind) + skip)
    cuts = seen = 0
    while cuts < 2000:
        ids = tokenizer.encode("".join(rng.choice(PARTS) for _ in range(rng.randint(1, 14))))
        if not ids:
            continue
        end = len(ids) if rng.random() < 0.5 else rng.randint(1, len(ids))  # answers end inside characters, too
        whole = tokenizer.decode(ids[:end], skip)
        for cut in {0, rng.randint(0, end), rng.randint(0, end)}:
            stream = tokenizer.stream_decoder(ids[:cut], skip)
            pieces = [stream.push(i) for i in ids[cut:end]] + [stream.flush()]
            shown = os.path.commonprefix([tokenizer.decode(ids[:cut], skip), whole])
            assert shown + "".join(pieces) == whole, (ids[:end], cut)
            assert stream.flush() == ""
            seen += sum(piece != "" for piece in pieces[:-1])
            cuts += 1
    assert seen > 2000  # most of the text comes before the end


def test_random_ids_give_the_text_of_the_library(stories) -> None:
    tokenizer = Tokenizer.from_folder(stories)
    rng = random.Random(1)
    for _ in range(300):
        ids = [rng.randrange(512) for _ in range(rng.randint(1, 80))]
        stream = tokenizer.stream_decoder(())
        assert "".join(stream.push(i) for i in ids) + stream.flush() == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_a_long_text_is_decoded_in_windows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(KINDS[kind]())
    ids, longest = tokenizer.encode("日本語のテスト the cat " * 80), 0
    whole, decode = tokenizer.decode(ids), Tokenizer.decode

    def counted(self: Tokenizer, given: list[int], skip_special_tokens: bool = True) -> str:
        nonlocal longest
        longest = max(longest, len(given))
        return decode(self, given, skip_special_tokens)

    monkeypatch.setattr(Tokenizer, "decode", counted)
    stream = tokenizer.stream_decoder(())
    assert "".join(stream.push(i) for i in ids) + stream.flush() == whole
    assert longest < 80
