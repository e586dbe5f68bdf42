"""The tokenizer and the chat template of a GGUF file, as a tokenizer of the tokenizers library.

Source: the SentencePiece and BPE tokenizers of llama.cpp (src/llama-vocab.cpp) and of the models' own tokenizer.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError
from ..tokenizer import Tokenizer
from .ends import token_id
from .reader import GGUFFile

if TYPE_CHECKING:
    import tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
_GPT4O = rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"


@dataclass(frozen=True)
class Split:
    """How a byte-level tokenizer cuts text into words.

    rule: a regular expression, "gpt2" (the library's own), or "digits" (single digits, then gpt2).
    ignore_merges: a word that is a token is taken whole. add_bos: where the file does not say. nfc: Unicode is composed first.
    """

    rule: str
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False


_LLAMA_BPE = Split(_LLAMA3, ignore_merges=True, add_bos=True)
# By tokenizer.ggml.pre; of several names for the same, the first one is written.
SPLITS = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), _LLAMA_BPE),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Split(_LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), Split(_QWEN2, nfc=True)),
    "stablelm2": Split(_QWEN2),
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "exaone4", "granite-docling"), Split("gpt2")),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), Split("digits")),
    "tekken": Split(_TEKKEN, ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Split(_GPT4O)),
}


def tokenizer_of(file: GGUFFile) -> Tokenizer | None:
    """Build the tokenizer of a file; None where the file has none.

    Raises
    ------
    CheckpointError
        The kind of tokenizer is not supported (named), or its lists contradict each other.
    """
    kind = file.get("tokenizer.ggml.model")
    tokens = file.get("tokenizer.ggml.tokens")
    if kind is None or kind == "none" or not tokens:
        return None
    if kind not in ("llama", "gpt2"):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.model: expected 'llama' or 'gpt2', got {kind!r}")
    if not isinstance(tokens, list):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.tokens: expected texts, got numbers")
    types = _per_token(file, "token_type", len(tokens), np.full(len(tokens), NORMAL))
    backend = _sentencepiece(file, tokens, types) if kind == "llama" else _byte_level(file, tokens, types)
    _add_special_tokens(backend, tokens, types)
    _add_template(backend, file, tokens, kind)
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {name: tokens[i] for name, key in names.items() if (i := token_id(file, key)) is not None}
    template, tools = file.get("tokenizer.chat_template"), file.get("tokenizer.chat_template.tool_use")
    return Tokenizer(backend, special, template, tools)


def _per_token(file: GGUFFile, name: str, count: int, default: Any) -> Any:
    values = file.get(f"tokenizer.ggml.{name}")
    if values is None:
        return default
    if not isinstance(values, np.ndarray) or len(values) != count:
        raise CheckpointError(f"{file.path}: tokenizer.ggml.{name}: expected {count} numbers, one for each token, got others")
    return values


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    """Text to id; of equal texts the first one is found."""
    return {token: i for i, token in reversed(list(enumerate(tokens)))}


def _sentencepiece(file: GGUFFile, tokens: list[str], types: Any) -> tokenizers.Tokenizer:
    """Pairs are merged in the order of the scores of what they become; unknown characters fall back to bytes."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    scores = _per_token(file, "scores", len(tokens), np.zeros(len(tokens)))
    vocabulary = _vocabulary(tokens)
    usable = {token for token, kind in zip(tokens, types, strict=True) if kind in (NORMAL, USER_DEFINED, BYTE, UNUSED)}
    merges = []
    for i, token in enumerate(tokens):
        if types[i] != NORMAL or vocabulary[token] != i:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in usable and right in usable:
                merges.append((-float(scores[i]), i, vocabulary[left], vocabulary[right], left, right))
    merges.sort()
    unknown = token_id(file, "unknown")
    backend = Backend(
        models.BPE(
            vocab=vocabulary, merges=[(m[4], m[5]) for m in merges], byte_fallback=True, fuse_unk=True,
            unk_token=None if unknown is None else tokens[unknown],
        )
    )  # fmt: skip
    prefix = file.get("tokenizer.ggml.add_space_prefix", True)
    steps = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def _byte_level(file: GGUFFile, tokens: list[str], types: Any) -> tokenizers.Tokenizer:
    """Bytes written as visible characters, words cut by a regular expression that tokenizer.ggml.pre names."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    pre = file.get("tokenizer.ggml.pre")
    split = SPLITS.get(pre) if isinstance(pre, str) else None
    if split is None:
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.pre: expected one of {', '.join(SPLITS)}, got {pre!r}; this way of cutting "
            "text into words is not supported"
        )
    vocabulary = _vocabulary(tokens)
    merges = []
    for entry in file.get("tokenizer.ggml.merges") or []:
        left, space, right = str(entry).partition(" ")
        if not space or left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise CheckpointError(f"{file.path}: tokenizer.ggml.merges: expected pairs of tokens, got {str(entry)[:40]!r}")
        merges.append((left, right))
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split.ignore_merges))
    if split.nfc:
        backend.normalizer = normalizers.NFC()
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.rule in ("gpt2", "digits"))
    if split.rule == "gpt2":
        backend.pre_tokenizer = own
    elif split.rule == "digits":
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), own])
    else:
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split.rule), "isolated"), own])
    backend.decoder = decoders.ByteLevel()
    return backend


def _add_special_tokens(backend: tokenizers.Tokenizer, tokens: list[str], types: Any) -> None:
    from tokenizers import AddedToken

    added = [
        (token, int(kind))
        for token, kind in zip(tokens, types, strict=True)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and token
    ]
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, kind in added if kind != USER_DEFINED])
    backend.add_tokens([AddedToken(t, normalized=False, special=False) for t, kind in added if kind == USER_DEFINED])


def _add_template(backend: tokenizers.Tokenizer, file: GGUFFile, tokens: list[str], kind: str) -> None:
    """What is put around a text: the begin token and the end token, where the file asks for them."""
    from tokenizers import processors

    by_default = kind == "llama" or SPLITS[file.get("tokenizer.ggml.pre")].add_bos
    bos = file.get("tokenizer.ggml.add_bos_token", by_default)
    eos = file.get("tokenizer.ggml.add_eos_token", False)
    begin = token_id(file, "bos") if bos else None
    end = token_id(file, "eos") if eos else None
    single = [tokens[begin] if begin is not None else "", "$A", tokens[end] if end is not None else ""]
    pieces = [piece for piece in single if piece]
    if len(pieces) > 1:
        special = [(tokens[i], i) for i in dict.fromkeys((begin, end)) if i is not None]
        backend.post_processor = processors.TemplateProcessing(single=pieces, special_tokens=special)
