"""Texts that are soon to become tokens, encoded together: the tokenizers library uses all cores for a list of texts.

Whoever asks the tokenizer for one of them gets what was found, which is what it would find for the text alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .tokenizers_library import library_errors

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

_FEWEST = 16  # texts for which it is worth it
MOST_CHARACTERS = 1 << 18  # whose tokens are in memory at a time; further texts are encoded when they are asked for


@contextmanager
def encoded_ahead(tokenizer: Tokenizer, texts: Iterable[Any]) -> Iterator[None]:
    """Let `tokenizer.encode` and `encode_with_offsets`, both without special tokens, know these texts within the block."""
    ready = getattr(tokenizer, "ready", None)
    if ready is None:  # a tokenizer of the caller's own
        yield
        return
    ready.update(_encode(tokenizer, texts))
    try:
        yield
    finally:
        ready.clear()


def _encode(tokenizer: Tokenizer, texts: Iterable[Any]) -> dict[str, Any]:
    chosen: dict[str, None] = {}
    n_left = MOST_CHARACTERS
    for text in texts:
        if type(text) is str and (n_left := n_left - len(text)) >= 0:
            chosen[text] = None
    if len(chosen) < _FEWEST:
        return {}
    try:
        with library_errors(DataError, "text: expected texts that the tokenizer can read"):
            found = tokenizer.backend.encode_batch(list(chosen), add_special_tokens=False)
    except DataError:
        return {}  # one of them cannot be read: it is met again when its turn comes, and named
    return dict(zip(chosen, found, strict=True))
