"""A tokenizer of the tokenizers library as the metadata of a GGUF file: the inverse of `tokenizer`.

What the format has no place for is refused here by name where the tokenizer says it, and else found when the file's tokenizer
is compared (`same_tokenizer`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..notices import tell
from ..text.tokenizer import Tokenizer
from .format import Kind, Value
from .splits import SPLITS, name_of_split, steps_of
from .tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPECIAL_IDS,
    TOOL_USE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    stripping_tokens,
    strips_spaces,
)
from .writer import array, boolean, text, uint32

WAY_OUT = "save the model as a folder instead"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "▁"


def tokenizer_metadata(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Value]:
    """Return the metadata of a tokenizer for a model with `vocab_size` rows of embedding.

    Raises
    ------
    CheckpointError
        The tokenizer is of a kind that llama.cpp cannot be told about, or one of its steps is (named).
    """
    state = state_of(tokenizer)
    model = state["model"]
    if model.get("type") != "BPE":
        raise CheckpointError(f"GGUF: expected a BPE tokenizer, got {model.get('type')!r}; {WAY_OUT}")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _no_place_for(f"the model's {key} ({model[key]!r})")
    kinds = {step.get("type") for part in ("pre_tokenizer", "decoder") for step in steps_of(state.get(part))}
    byte_level = "ByteLevel" in kinds
    tokens, types = _tokens(tokenizer, state, vocab_size, byte_level)
    values = _byte_level(state) if byte_level else _sentencepiece(state, tokens)
    values["tokenizer.ggml.tokens"] = array(tokens, Kind.STRING)
    values["tokenizer.ggml.token_type"] = array(np.asarray(types, np.int32), Kind.INT32)
    return values | _special(tokenizer) | _templates(tokenizer)


def state_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """What tokenizer.json says of a tokenizer."""
    state: dict[str, Any] = json.loads(tokenizer.backend.to_str())
    return state


def model_name(name: str, tokenizer: Tokenizer | None) -> str:
    """The general.name of a file: `name`, changed where llama.cpp would conclude from it that spaces after special tokens are
    taken away (it does so for Phi-3) and this tokenizer does not, or the other way round."""
    added = [] if tokenizer is None else state_of(tokenizer).get("added_tokens", [])
    wanted = {entry["content"] for entry in added if entry["rstrip"]}
    stripping = bool(wanted) and wanted == stripping_tokens({entry["content"] for entry in added})
    if stripping == strips_spaces(name):
        return name
    return f"phi-3 {name}" if stripping else re.sub(r"(phi)-?3", r"\1 3", name, flags=re.IGNORECASE)


def tell_of_composing(values: Mapping[str, Value]) -> None:
    """Say in one line where llama.cpp leaves out a step that the name of the rule stands for here."""
    pre = values.get("tokenizer.ggml.pre")
    if pre is not None and pre.data in SPLITS and SPLITS[pre.data].nfc:
        tell(
            "GGUF: the tokenizer composes Unicode (NFC) first, llama.cpp does not: text with combining marks gets other ids "
            "there; compose it before (unicodedata.normalize)"
        )


def _no_place_for(what: str) -> CheckpointError:
    return CheckpointError(f"GGUF: expected a tokenizer that the format has keys for, got one with {what}; {WAY_OUT}")


def described(step: Mapping[str, Any]) -> str:
    """A step of tokenizer.json in a few words: Prepend(prepend="▁")."""
    kept = {key: value for key, value in step.items() if key not in ("type", "trim_offsets")}
    options = [f"{key}={json.dumps(value, ensure_ascii=False)[:60]}" for key, value in kept.items()]
    return f"{step.get('type')}({', '.join(options)})"


def _byte_level(state: dict[str, Any]) -> dict[str, Value]:
    normalizers = steps_of(state.get("normalizer"))
    for step in normalizers:
        if step.get("type") != "NFC":
            raise _no_place_for(f"the normalizer {described(step)}")
    model = state["model"]
    pre = name_of_split(state.get("pre_tokenizer"), bool(normalizers), bool(model.get("ignore_merges")))
    if pre is None:
        how = ", ".join(map(described, [*normalizers, *steps_of(state.get("pre_tokenizer"))])) or "no pre_tokenizer"
        raise CheckpointError(
            f"GGUF: expected a tokenizer that cuts text into words as one of {', '.join(SPLITS)}, got {how}; {WAY_OUT}"
        )
    merges = _pairs(model["merges"])
    for pair in merges:
        if any(" " in part for part in pair):
            raise _no_place_for(f"the merge {pair!r}, in which a space stands")
    return {
        "tokenizer.ggml.model": text("gpt2"), "tokenizer.ggml.pre": text(pre),
        "tokenizer.ggml.merges": array([" ".join(pair) for pair in merges], Kind.STRING),
    }  # fmt: skip


def _sentencepiece(state: dict[str, Any], tokens: list[str]) -> dict[str, Value]:
    """The keys of SentencePiece's kind; `tokens` that write a space as itself are changed to the format's way."""
    model = state["model"]
    if not model.get("byte_fallback"):
        raise CheckpointError(
            f"GGUF: expected a tokenizer with bytes (byte level or byte fallback), got another kind of BPE; {WAY_OUT}"
        )
    missing = next((b for b in range(256) if f"<0x{b:02X}>" not in model["vocab"]), None)
    if missing is not None:
        raise CheckpointError(f"GGUF: expected a token for each of the 256 bytes, got none for <0x{missing:02X}>; {WAY_OUT}")
    for step in steps_of(state.get("normalizer")):
        if not _is_space_step(step):
            raise _no_place_for(f"the normalizer {described(step)}")
    replaced = any(step.get("type") == "Replace" for step in steps_of(state.get("normalizer")))
    for step in steps_of(state.get("pre_tokenizer")):
        if step.get("type") != "Metaspace" and not (replaced and _cuts_at_spaces(step)):
            raise _no_place_for(f"the pre_tokenizer {described(step)}")
    rank = {"".join(pair): i for i, pair in reversed(list(enumerate(_pairs(model["merges"]))))}
    last = float(len(rank))  # a token that nothing is merged to comes after all that something is
    scores = [-float(rank.get(token, last)) if len(token) > 1 else 0.0 for token in tokens]
    if not any(_SPACE in token for token in model["vocab"]):
        tokens[:] = [token.replace(" ", _SPACE) if token in model["vocab"] else token for token in tokens]
    metaspaces = [step for step in steps_of(state.get("pre_tokenizer")) if step.get("type") == "Metaspace"]
    prefix = any(step.get("type") == "Prepend" for step in steps_of(state.get("normalizer")))
    prefix = prefix or any(step.get("prepend_scheme", "always") != "never" for step in metaspaces)
    return {
        "tokenizer.ggml.model": text("llama"), "tokenizer.ggml.scores": array(np.asarray(scores, np.float32), Kind.FLOAT32),
        "tokenizer.ggml.add_space_prefix": boolean(prefix),
    }  # fmt: skip


def _is_space_step(step: Mapping[str, Any]) -> bool:
    """Whether a step only writes spaces as SentencePiece does, or puts one in front."""
    if step.get("type") == "Prepend":
        return step.get("prepend") in (_SPACE, " ")
    return step.get("type") == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == _SPACE


def _cuts_at_spaces(step: Mapping[str, Any]) -> bool:
    """Whether a step cuts at spaces alone: nothing, where a normalizer has written them all in another way (Gemma's)."""
    return step.get("type") == "Split" and step.get("pattern") == {"String": " "}


def _pairs(merges: list[Any]) -> list[list[str]]:
    return [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in merges]


def _tokens(tokenizer: Tokenizer, state: dict[str, Any], vocab_size: int, byte_level: bool) -> tuple[list[str], list[int]]:
    """The text and the kind of each id; ids without a token are filled up as llama.cpp's converter does."""
    vocabulary, model = tokenizer.backend.get_vocab(with_added_tokens=False), state["model"]
    added = {entry["content"]: entry for entry in state.get("added_tokens", [])}
    ids = vocabulary | {content: entry["id"] for content, entry in added.items()}
    if ids and max(ids.values()) >= vocab_size:
        raise CheckpointError(f"GGUF: expected token ids below {vocab_size} (rows of the embedding), got {max(ids.values())}")
    tokens, types = [""] * vocab_size, [UNUSED] * vocab_size
    for token, i in sorted(ids.items()):
        if "\0" in token:  # llama.cpp reads the texts of a file up to it
            raise _no_place_for(f"the token {token[:40]!r}, in which a null character stands")
        if tokens[i]:
            raise CheckpointError(f"GGUF: expected one token for each id, got {tokens[i]!r} and {token!r} for {i}; {WAY_OUT}")
        tokens[i] = token
        if token not in added or (not byte_level and token in vocabulary and _never_found(added[token])):
            types[i] = BYTE if model.get("byte_fallback") and _BYTE_TOKEN.fullmatch(token) else NORMAL
        elif token == model.get("unk_token"):
            types[i] = UNKNOWN
        else:
            types[i] = CONTROL if added[token]["special"] else USER_DEFINED
    for i in range(vocab_size):
        tokens[i] = tokens[i] or _padding(i, ids)
    return tokens, types


def _padding(i: int, taken: Container[str]) -> str:
    """The text of an id without a token, as llama.cpp's converter writes it."""
    token = f"[PAD{i}]"
    while token in taken:
        token = f"[{token}]"
    return token


def padded(values: dict[str, Value], vocab_size: int) -> dict[str, Value]:
    """The metadata of another file's tokenizer for a model with `vocab_size` rows of embedding, which may have become more."""
    tokens = values.get("tokenizer.ggml.tokens")
    missing = 0 if tokens is None else vocab_size - len(tokens.data)
    if tokens is None or missing <= 0:
        return values
    more = [_padding(i, set(tokens.data)) for i in range(len(tokens.data), vocab_size)]
    values = values | {"tokenizer.ggml.tokens": array([*tokens.data, *more], Kind.STRING)}
    for name, fill in (("token_type", UNUSED), ("scores", 0)):
        given = values.get(f"tokenizer.ggml.{name}")
        if given is not None and given.item is not None:
            extended = np.concatenate([given.data, np.full(missing, fill, given.data.dtype)])
            values[f"tokenizer.ggml.{name}"] = array(extended, given.item)
    return values


def _never_found(entry: Mapping[str, Any]) -> bool:
    """Whether an added token stands for spaces that no text has in that form before it is normalized (Gemma's ▁▁): such a
    token comes about by merges alone, and is written as the normal token that it is."""
    return not entry["special"] and not entry["normalized"] and _SPACE in entry["content"]


def _special(tokenizer: Tokenizer) -> dict[str, Value]:
    """Ids of the special tokens, and whether a text gets the first and the last of them."""
    ids: dict[str, int] = {}
    for name, key in SPECIAL_IDS.items():
        content = tokenizer.special_tokens.get(name)
        found = None if content is None else tokenizer.token_to_id(content)
        if found is not None:
            ids[key] = found
    plain = list(tokenizer.backend.encode("a", add_special_tokens=False).ids)
    around = list(tokenizer.backend.encode("a", add_special_tokens=True).ids)
    before = next((n for n in range(len(around) - len(plain) + 1) if around[n : n + len(plain)] == plain), 0)
    after = around[before + len(plain) :]
    if before:
        ids.setdefault("bos", around[0])
    values = {f"tokenizer.ggml.{key}_token_id": uint32(i) for key, i in ids.items()}
    values["tokenizer.ggml.add_bos_token"] = boolean(bool(before) and around[0] == ids["bos"])
    values["tokenizer.ggml.add_eos_token"] = boolean(bool(after) and after[-1] == ids.get("eos"))
    return values


def _templates(tokenizer: Tokenizer) -> dict[str, Value]:
    values = {}
    if tokenizer.chat_template is not None:
        values["tokenizer.chat_template"] = text(tokenizer.chat_template)
    if tokenizer.tool_template is not None:
        values["tokenizer.chat_templates"] = array([TOOL_USE], Kind.STRING)
        values[f"tokenizer.chat_template.{TOOL_USE}"] = text(tokenizer.tool_template)
    return values
