"""A text file as token pieces of one length, without the whole text and its tokens in memory at once.

The text is tokenized in windows that overlap. Neighbours are joined before the first character of a line (of a word, where
a line is long; anywhere, where a word is) around which both have the same tokens; where they have not, the window grows. So
the ids are those of the whole text.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

WINDOW = 1 << 17  # characters that are tokenized at once
SHARED = 1 << 12  # characters that two neighbours have in common
_AROUND = 1 << 10  # characters on both sides of a place that must have the same tokens in both
_EDGE = 1 << 9  # characters at the ends of a window that say nothing: there the text goes on
_TRIES = 16  # places that are looked at before the window grows
_LINE_STARTS = re.compile(r"(?<=\n)(?=\S)")
_WORD_STARTS = re.compile(r"(?<=[^\W_])(?= [^\W_])")
_ANYWHERE = re.compile(r"(?<=\S)(?=\S)")

Ids = NDArray[np.int32]


def cut_pieces(parts: Iterable[Ids], length: int, begin: list[int]) -> Iterator[Ids]:
    """Consecutive pieces of `length` tokens, each of which begins with `begin` (once, where the text has it there)."""
    first = np.asarray(begin, np.int32)
    left = np.zeros(0, np.int32)
    for part in chain(parts, [None]):
        left = left if part is None else np.concatenate([left, part])
        at = 0
        while at < len(left) and (part is None or len(left) - at >= length):
            has_begin = np.array_equal(left[at : at + len(first)], first)
            own = left[at : at + length - (0 if has_begin else len(first))]
            yield own.copy() if has_begin else np.concatenate([first, own])
            at += len(own)
        left = left[at:]


@dataclass(frozen=True)
class _Window:
    """Tokens of a part of the text; `spans` says where each begins and ends in the part."""

    ids: list[int]
    spans: list[tuple[int, int]]

    def between(self, begin: int, end: int | None) -> Ids:
        """The ids from one character to another that both begin a token; None: to the end."""
        return np.asarray(self.ids[self.after(begin) if begin else 0 : None if end is None else self.after(end)], np.int32)

    def is_cut(self, at: int) -> bool:
        """Whether a token begins at a character (or after it, where tokens do not count their space); none spans it."""
        i = self.after(at)
        return i < len(self.ids) and self.spans[i][0] >= at

    def after(self, at: int) -> int:
        """The index of the first token that ends behind a character."""
        return bisect_right(self.spans, at, key=lambda span: span[1])

    def near(self, at: int, origin: int) -> list[tuple[int, int, int]]:
        """The tokens around a character, with their places counted from `origin`."""
        chosen = range(self.after(at - _AROUND), self.after(at + _AROUND))
        return [(self.ids[i], self.spans[i][0] - origin, self.spans[i][1] - origin) for i in chosen]


def tokenize(blocks: Iterable[str], tokenizer: Tokenizer) -> Iterator[Ids]:
    """Yield the token ids of a text, without what the tokenizer puts before and after it."""
    source = iter(blocks)
    text = ""
    size, kept = WINDOW, 0  # characters of the window, and the one of them from which on nothing was given yet
    while True:
        text, is_last = _fill(text, size, source)
        window = _encode(text[:size], tokenizer)
        while not is_last:
            shared = size - SHARED
            text, is_last = _fill(text, shared + WINDOW, source)
            following = _encode(text[shared : shared + WINDOW], tokenizer)
            place = _join(text, window, following, shared, size)
            if place is None:
                size *= 2
                break
            yield window.between(kept, place)
            text, window, size, kept = text[shared:], following, WINDOW, place - shared
        else:
            yield window.between(kept, None)
            return


def _encode(text: str, tokenizer: Tokenizer) -> _Window:
    return _Window(*tokenizer.encode_with_offsets(text, add_special_tokens=False))


def _fill(text: str, size: int, source: Iterator[str]) -> tuple[str, bool]:
    """The text with at least size + 1 characters, and whether it ends before that."""
    parts, have = [text], len(text)
    while have <= size and (block := next(source, None)) is not None:
        parts.append(block)
        have += len(block)
    return "".join(parts), have <= size


def _join(text: str, window: _Window, following: _Window, shared: int, end: int) -> int | None:
    """The first place in the text around which both windows have the same tokens."""
    zone = shared + _EDGE + _AROUND, end - _EDGE - _AROUND
    for starts in (_LINE_STARTS, _WORD_STARTS, _ANYWHERE):
        places = (found.start() for found in starts.finditer(text, *zone))
        cut = (at for at in places if window.is_cut(at) and following.is_cut(at - shared))
        for at in islice(cut, _TRIES):
            if window.near(at, shared) == following.near(at - shared, 0):
                return at
    return None
