"""A tokenizer of the tokenizers library as the metadata of a GGUF file: the inverse of `tokenizer`."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..tokenizer import Tokenizer
from .format import Kind, Value
from .tokenizer import BYTE, CONTROL, NORMAL, SPLITS, UNKNOWN, UNUSED, USER_DEFINED
from .writer import array, boolean, text, uint32

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def tokenizer_metadata(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Value]:
    """Return the metadata of a tokenizer for a model with `vocab_size` rows of embedding.

    Raises
    ------
    CheckpointError
        The tokenizer is of a kind that llama.cpp cannot be told about.
    """
    state = json.loads(tokenizer.backend.to_str())
    model = state["model"]
    if model.get("type") != "BPE":
        raise CheckpointError(f"GGUF: expected a BPE tokenizer, got {model.get('type')!r}; save the model as a folder instead")
    byte_level = "ByteLevel" in json.dumps([state.get("pre_tokenizer"), state.get("decoder")])
    tokens, types = _tokens(tokenizer, state, vocab_size, model.get("unk_token"))
    values = {"tokenizer.ggml.model": text("gpt2" if byte_level else "llama")}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if byte_level:
        values["tokenizer.ggml.pre"] = text(_pre(state))
    elif model.get("byte_fallback"):
        rank = {"".join(pair): i for i, pair in reversed(list(enumerate(_pairs(model["merges"]))))}
        scores = [-float(rank[token]) if token in rank else 0.0 for token in tokens]
        tokens = [token.replace(" ", "▁") if types[i] == NORMAL else token for i, token in enumerate(tokens)]
        values["tokenizer.ggml.scores"] = array(np.asarray(scores, np.float32), Kind.FLOAT32)
        values["tokenizer.ggml.add_space_prefix"] = boolean("Prepend" in json.dumps(state.get("normalizer")))
    else:
        raise CheckpointError("GGUF: expected a tokenizer with bytes (byte level or byte fallback), got another kind of BPE")
    values["tokenizer.ggml.tokens"] = array(tokens, Kind.STRING)
    values["tokenizer.ggml.token_type"] = array(np.asarray(types, np.int32), Kind.INT32)
    if byte_level:
        values["tokenizer.ggml.merges"] = array(merges, Kind.STRING)
    return values | _special(tokenizer)


def _pairs(merges: list[Any]) -> list[list[str]]:
    return [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in merges]


def _tokens(tokenizer: Tokenizer, state: dict[str, Any], vocab_size: int, unknown: str | None) -> tuple[list[str], list[int]]:
    vocabulary = dict(state["model"]["vocab"])
    added = {entry["content"]: entry for entry in state.get("added_tokens", [])}
    ids = vocabulary | {text: entry["id"] for text, entry in added.items()}
    if ids and max(ids.values()) >= vocab_size:
        raise CheckpointError(f"GGUF: expected token ids below {vocab_size} (rows of the embedding), got {max(ids.values())}")
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for token, i in sorted(ids.items(), key=lambda item: item[1], reverse=True):
        tokens[i] = token
        if token in added:
            types[i] = CONTROL if added[token]["special"] else USER_DEFINED
        else:
            types[i] = BYTE if state["model"].get("byte_fallback") and _BYTE_TOKEN.fullmatch(token) else NORMAL
        if token == unknown:
            types[i] = UNKNOWN
    return tokens, types


def _pre(state: dict[str, Any]) -> str:
    """The name of the way in which this tokenizer cuts text into words."""
    step = state.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    patterns = [entry["pattern"].get("Regex") for entry in steps if entry.get("type") == "Split"]
    kinds = [entry.get("type") for entry in steps]
    rule = patterns[0] if patterns else "digits" if "Digits" in kinds else "gpt2"
    ignore_merges = bool(state["model"].get("ignore_merges"))
    for name, split in SPLITS.items():
        if (
            split.rule == rule
            and split.ignore_merges == ignore_merges
            and split.nfc == ("NFC" in json.dumps(state["normalizer"]))
        ):
            return name
    raise CheckpointError(
        f"GGUF: expected a tokenizer that cuts text into words as one of {', '.join(SPLITS)}, got {str(rule)[:60]!r}; "
        "save the model as a folder instead"
    )


def _special(tokenizer: Tokenizer) -> dict[str, Value]:
    ids = {
        "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "padding": tokenizer.pad_token_id,
        "unknown": tokenizer.unk_token_id,
    }  # fmt: skip
    values = {f"tokenizer.ggml.{key}_token_id": uint32(i) for key, i in ids.items() if i is not None}
    around = tokenizer.encode("a")
    plain = tokenizer.encode("a", add_special_tokens=False)
    begin = len(around) > len(plain) and around[0] == tokenizer.bos_token_id
    values["tokenizer.ggml.add_bos_token"] = boolean(begin)
    values["tokenizer.ggml.add_eos_token"] = boolean(len(around) > len(plain) + begin and around[-1] == tokenizer.eos_token_id)
    if tokenizer.chat_template is not None:
        values["tokenizer.chat_template"] = text(tokenizer.chat_template)
    if tokenizer.tool_template is not None:
        values["tokenizer.chat_template.tool_use"] = text(tokenizer.tool_template)
    return values
