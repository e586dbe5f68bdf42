"""The tokenizer and the chat template of a GGUF file, as a tokenizer of the tokenizers library that does what llama.cpp does.

Source: the SentencePiece and BPE tokenizers of llama.cpp (src/llama-vocab.cpp) and of the models' own tokenizer.json.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError, shorten
from ..text.tokenizer import Tokenizer
from .ends import token_id
from .reader import GGUFFile
from .splits import SPLITS

if TYPE_CHECKING:
    import tokenizers

    from .same_model import PlannedFile

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
# Key of the special token in tokenizer_config.json to tokenizer.ggml.<name>_token_id; the format's spelling.
SPECIAL_IDS = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding", "sep_token": "seperator",
    "mask_token": "mask",
}  # fmt: skip
TOOL_USE = "tool_use"  # the named template for conversations with tools
# Tokens of these texts end a generation in llama.cpp, which makes control tokens of them whatever the file says.
_CONTROL_TEXTS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> <EOT> "
    "_<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~[".split()
)
_DEFAULT_IDS = {"bos": 1, "eos": 2}  # what llama.cpp puts around a text of SentencePiece's kind where a file names nothing
_PADDING = re.compile(r"\[+PAD\d+\]+")
# Files whose general.name has one of these in it take the spaces after their special tokens away, except after a few.
_STRIPPING_NAMES = ("phi-3", "phi3")
_NOT_STRIPPED, _STRIPPED = ("<unk>", "<s>", "<|endoftext|>"), "</s>"


def tokenizer_of(file: GGUFFile | PlannedFile) -> Tokenizer | None:
    """Build the tokenizer of a file; None where the file has none.

    Raises
    ------
    CheckpointError
        The kind of tokenizer is not supported (named), or its lists contradict each other.
    """
    kind = file.get("tokenizer.ggml.model")
    tokens = file.get("tokenizer.ggml.tokens")
    if kind is None or (isinstance(kind, str) and kind in ("none", "no_vocab")) or tokens is None:
        return None
    if not isinstance(kind, str) or kind not in ("llama", "gpt2"):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.model: expected 'llama' or 'gpt2', got {kind!r}")
    tokens = _checked_tokens(file, tokens)
    if not tokens:
        return None
    types = _types(file, tokens)
    try:
        backend = _sentencepiece(file, tokens, types) if kind == "llama" else _byte_level(file, tokens, types)
        _add_special_tokens(backend, tokens, types, _stripping(file, tokens, types))
        _add_template(backend, file, tokens, kind)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{file.path}: expected a tokenizer, got lists that the library refuses: {error}") from None
    special = {name: tokens[i] for name, key in SPECIAL_IDS.items() if (i := token_id(file, key)) is not None}
    template, tools = (_text(file, f"tokenizer.chat_template{name}") for name in ("", f".{TOOL_USE}"))
    return Tokenizer(backend, special, template, tools)


def _checked_tokens(file: GGUFFile | PlannedFile, tokens: Any) -> list[str]:
    """The texts of the tokens, each one once, as many as the embedding has rows or fewer."""
    where = f"{file.path}: tokenizer.ggml.tokens"
    if not isinstance(tokens, list):
        raise CheckpointError(f"{where}: expected texts, got numbers")
    rows = file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else len(tokens)
    if len(tokens) > rows:
        raise CheckpointError(f"{where}: expected at most {rows} tokens (rows of the embedding), got {len(tokens)}")
    texts = [str(token) or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    if len(set(texts)) < len(texts):
        ids: dict[str, int] = {}
        for i, token in enumerate(texts):
            if ids.setdefault(token, i) != i:
                raise CheckpointError(f"{where}: expected each token once, got {token[:40]!r} as {ids[token]} and as {i}")
    return texts


def _per_token(file: GGUFFile | PlannedFile, name: str, count: int, default: Any) -> Any:
    values = file.get(f"tokenizer.ggml.{name}")
    if values is None:
        return default
    if not isinstance(values, np.ndarray) or len(values) != count:
        raise CheckpointError(f"{file.path}: tokenizer.ggml.{name}: expected {count} numbers, one for each token, got others")
    return values


def _types(file: GGUFFile | PlannedFile, tokens: list[str]) -> list[int]:
    given = _per_token(file, "token_type", len(tokens), np.full(len(tokens), NORMAL)).tolist()
    return [
        CONTROL if token in _CONTROL_TEXTS and not _is_special(kind) else kind
        for token, kind in zip(tokens, given, strict=True)
    ]


def _flag(file: GGUFFile | PlannedFile, name: str, default: bool) -> bool:
    value = file.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.{name}: expected true or false, got {str(value)[:40]!r}")
    return value


def _text(file: GGUFFile | PlannedFile, key: str) -> str | None:
    value = file.get(key)
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{file.path}: {key}: expected text, got {type(value).__name__}")
    return value


def _vocabulary(tokens: list[str], types: list[int]) -> dict[str, int]:
    """Text to id. What only fills up the rows of the embedding is no token: its id has no text, as in a model's folder."""
    named = enumerate(zip(tokens, types, strict=True))
    return {token: i for i, (token, kind) in named if kind != UNUSED or not _PADDING.fullmatch(token)}


def _sentencepiece(file: GGUFFile | PlannedFile, tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    """Pairs are merged in the order of the scores of what they become, whatever kind that is; unknown characters fall back to
    bytes. A space stands before the text and behind every special token where the file asks for it."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    scores = np.asarray(_per_token(file, "scores", len(tokens), np.zeros(len(tokens))), np.float32)
    if not np.isfinite(scores).all():
        at = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise CheckpointError(f"{file.path}: tokenizer.ggml.scores: expected finite numbers, got {scores[at]} for token {at}")
    vocabulary = _vocabulary(tokens, types)
    parts = {token for token, i in vocabulary.items() if types[i] != BYTE}
    merges = []
    for token, i in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in parts and right in parts:
                merges.append((-float(scores[i]), i, vocabulary[left], vocabulary[right], left, right))
    merges.sort()
    unknown = token_id(file, "unknown")
    backend = Backend(
        models.BPE(
            vocab=vocabulary, merges=[(m[4], m[5]) for m in merges], byte_fallback=True, fuse_unk=True,
            unk_token=None if unknown is None else tokens[unknown],
        )
    )  # fmt: skip
    prefix = _flag(file, "add_space_prefix", True)
    steps = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def _byte_level(file: GGUFFile | PlannedFile, tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
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
    vocabulary = _vocabulary(tokens, types)
    backend = Backend(models.BPE(vocab=vocabulary, merges=_merges(file, vocabulary), ignore_merges=split.ignore_merges))
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


def _merges(file: GGUFFile | PlannedFile, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    where = f"{file.path}: tokenizer.ggml.merges: expected pairs of tokens, got"
    given = file.get("tokenizer.ggml.merges")
    if given is not None and not isinstance(given, list):
        raise CheckpointError(f"{where} {'numbers' if isinstance(given, np.ndarray) else shorten([given])}")
    merges = []
    for entry in given or []:
        left, space, right = entry.partition(" ")
        if not space or left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise CheckpointError(f"{where} {entry[:40]!r}")
        merges.append((left, right))
    return merges


def strips_spaces(name: str) -> bool:
    """Whether llama.cpp takes spaces after special tokens away in files of this general.name."""
    return any(part in name.lower() for part in _STRIPPING_NAMES)


def stripping_tokens(special: set[str]) -> set[str] | None:
    """Of the special tokens, those that take the spaces after them away there; None where llama.cpp loads no such file."""
    if not {*_NOT_STRIPPED, _STRIPPED} <= special:
        return None
    return special - set(_NOT_STRIPPED)


def _stripping(file: GGUFFile | PlannedFile, tokens: list[str], types: list[int]) -> set[str]:
    name = file.get("general.name")
    if not isinstance(name, str) or not strips_spaces(name):
        return set()
    return stripping_tokens({token for token, kind in zip(tokens, types, strict=True) if _is_special(kind)}) or set()


def _is_special(kind: int) -> bool:
    """Whether a token is found in a text before anything else is cut."""
    return kind in (UNKNOWN, CONTROL, USER_DEFINED)


def _add_special_tokens(backend: tokenizers.Tokenizer, tokens: list[str], types: list[int], stripping: set[str]) -> None:
    from tokenizers import AddedToken

    for hidden, add in ((True, backend.add_special_tokens), (False, backend.add_tokens)):
        add(
            [
                AddedToken(token, normalized=False, special=hidden, rstrip=token in stripping)
                for token, kind in zip(tokens, types, strict=True)
                if _is_special(kind) and hidden == (kind != USER_DEFINED)
            ]
        )


def _add_template(backend: tokenizers.Tokenizer, file: GGUFFile | PlannedFile, tokens: list[str], kind: str) -> None:
    """What is put around a text: the begin token and the end token, where the file asks for them."""
    from tokenizers import processors

    by_default = kind == "llama" or SPLITS[file.get("tokenizer.ggml.pre")].add_bos
    begin = _around(file, "bos", by_default, kind, len(tokens))
    end = _around(file, "eos", False, kind, len(tokens))
    single = [tokens[begin] if begin is not None else "", "$A", tokens[end] if end is not None else ""]
    pieces = [piece for piece in single if piece]
    if len(pieces) > 1:
        special = [(tokens[i], i) for i in dict.fromkeys((begin, end)) if i is not None]
        backend.post_processor = processors.TemplateProcessing(single=pieces, special_tokens=special)


def _around(file: GGUFFile | PlannedFile, name: str, by_default: bool, kind: str, count: int) -> int | None:
    """The token that is put before ("bos") or behind ("eos") a text."""
    if not _flag(file, f"add_{name}_token", by_default):
        return None
    default = _DEFAULT_IDS[name] if kind == "llama" and _DEFAULT_IDS[name] < count else None
    found = token_id(file, name)
    return default if found is None else found
