"""Token ids of a text that goes on after another one.

Tokenizers of SentencePiece's kind write a space before every text, because a text begins a word. A text that goes on after
others must not get one: it is read by a copy of the tokenizer without the steps that look at the beginning of a text.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from .tokenizer import Tokenizer, check_text

if TYPE_CHECKING:
    import tokenizers

_copies: WeakKeyDictionary[Tokenizer, tokenizers.Tokenizer] = WeakKeyDictionary()


def continuation_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text that goes on after another, without special tokens and a space of the tokenizer's own.

    Raises
    ------
    DataError
        It is no valid Unicode.
    """
    check_text(text)
    backend = _copies.get(tokenizer)
    if backend is None:
        backend = _copies[tokenizer] = continuing(tokenizer.backend)
    return list(backend.encode(text, add_special_tokens=False).ids)


def continuing(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Return a tokenizer that reads every text as the middle of one; the same object where it does so already."""
    steps = (backend.normalizer, backend.pre_tokenizer)
    if not any(_looks_at_begin(json.loads(step.__getstate__())) for step in steps if step is not None):
        return backend
    spec = json.loads(backend.to_str())
    for key in ("normalizer", "pre_tokenizer"):
        spec[key] = _of_the_middle(spec[key]) if spec[key] else None
    return type(backend).from_str(json.dumps(spec))


def _looks_at_begin(step: dict[str, Any]) -> bool:
    return _of_the_middle(step) != step


def _of_the_middle(step: dict[str, Any]) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer without what it does at the beginning of a text."""
    kind = step.get("type")
    if kind == "Prepend":
        return None
    if kind == "Strip":
        return step | {"strip_left": False}
    if kind == "Sequence":
        key = "normalizers" if "normalizers" in step else "pretokenizers"
        return step | {key: [inner for inner in map(_of_the_middle, step[key]) if inner is not None]}
    changes = {"add_prefix_space": False, "prepend_scheme": "never"}
    return step | {key: value for key, value in changes.items() if key in step}
