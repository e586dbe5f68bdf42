r"""How byte-level tokenizers cut text into words: the names that GGUF files have for it (tokenizer.ggml.pre).

A name stands for what the models of that name do; llama.cpp composes no Unicode, as the models of "qwen2" do.
Source: the BPE pre-tokenizers of llama.cpp (src/llama-vocab.cpp) and of the models' own tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
_GPT4O = rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
# The library's own rule, where a tokenizer.json spells it out.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


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
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "exaone4", "granite-docling", "mellum"), Split("gpt2")),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), Split("digits")),
    "tekken": Split(_TEKKEN, ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), Split(_GPT4O)),
}


def name_of_split(pre_tokenizer: Mapping[str, Any] | None, nfc: bool, ignore_merges: bool) -> str | None:
    """The name of the rule of a tokenizer.json's `pre_tokenizer`; None where there is none.

    Where no name ignores merges as this tokenizer does, one that does not is returned: whether that changes an id shows when
    the file's tokenizer is compared.
    """
    rule = _rule_of(pre_tokenizer)
    names = [name for name, split in SPLITS.items() if split.rule == rule and split.nfc == nfc]
    exact = [name for name in names if SPLITS[name].ignore_merges == ignore_merges]
    return next(iter(exact or names), None)


def _rule_of(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    steps = steps_of(pre_tokenizer)
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    before, own = steps[:-1], bool(steps[-1].get("use_regex", True))
    if not before:
        return "gpt2" if own else None
    if len(before) > 1:
        return None
    if _is_single_digits(before[0]):
        return "digits" if own else None
    rule = _expression(before[0])
    return None if own else "gpt2" if rule == _GPT2 else rule


def steps_of(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a tokenizer.json's normalizer, pre_tokenizer or decoder, sequences opened."""
    if step is None:
        return []
    if step.get("type") != "Sequence":
        return [step]
    parts = next((step[key] for key in ("normalizers", "pretokenizers", "processors", "decoders") if key in step), ())
    return [inner for part in parts for inner in steps_of(part)]


def _is_single_digits(step: Mapping[str, Any]) -> bool:
    return (step.get("type") == "Digits" and bool(step.get("individual_digits"))) or _expression(step) == r"\p{N}"


def _expression(step: Mapping[str, Any]) -> str | None:
    """The expression whose matches are the words, and what is between them, too."""
    if step.get("type") != "Split" or (step.get("behavior"), bool(step.get("invert"))) not in (
        ("Isolated", False), ("Isolated", True), ("Removed", True),
    ):  # fmt: skip
        return None
    pattern = step.get("pattern", {}).get("Regex")
    if step["behavior"] == "Removed" and pattern == r"\p{N}":  # what is between the matches would be lost
        return None
    return pattern if isinstance(pattern, str) else None
