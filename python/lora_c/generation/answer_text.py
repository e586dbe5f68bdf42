"""The text of an answer, piece by piece, up to a stop text."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..configs import GenerationConfig

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer


class TextPieces:
    """Makes text of tokens, up to a stop text, of which no part is given.

    Stop texts are looked for in the text with its special tokens, and in the text without them, which is what is given: both
    "<|end|>" and a sentence that a special token interrupts are found. The pieces joined are the decoded tokens, cut there.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], config: GenerationConfig, skip_special_tokens: bool = True
    ) -> None:
        self._stops = sorted({text for text in config.stop_strings if text})
        self._shown = tokenizer.stream_decoder(prompt, skip_special_tokens)
        self._whole = tokenizer.stream_decoder(prompt, skip_special_tokens=False) if self._stops else None
        self._text = self._with_special = ""
        self._marks: list[tuple[int, int]] = [(0, 0)]  # after each token: lengths of both texts
        self._given = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """Return the text that is certain by now; it may be empty."""
        return self._add(self._shown.push(token), self._whole.push(token) if self._whole else "", final=False)

    def flush(self) -> str:
        """Return what was held back, after the last token."""
        if self.stopped:
            return ""
        return self._add(self._shown.flush(), self._whole.flush() if self._whole else "", final=True)

    def _add(self, shown: str, whole: str, final: bool) -> str:
        if not self._stops:
            return shown
        self._text += shown
        self._with_special += whole
        self._marks.append((len(self._with_special), len(self._text)))
        ends = [at for stop in self._stops if (at := self._text.find(stop, self._from(self._text, shown, stop))) >= 0]
        for stop in self._stops:
            at = self._with_special.find(stop, self._from(self._with_special, whole, stop))
            ends += [self._shown_at(at)] if at >= 0 else []
        self.stopped = bool(ends)
        if ends:
            return self._give(min(ends))
        if final:
            return self._give(len(self._text))
        held = self._shown_at(len(self._with_special) - _overlap(self._with_special, self._stops))
        return self._give(min(held, len(self._text) - _overlap(self._text, self._stops)))

    def _from(self, text: str, piece: str, stop: str) -> int:
        """Where a stop text that ends in the last piece can begin."""
        return max(0, len(text) - len(piece) - len(stop) + 1)

    def _shown_at(self, at: int) -> int:
        """The place in the shown text of one in the text with special tokens."""
        after = bisect_right(self._marks, at, key=lambda mark: mark[0])
        if after == len(self._marks):
            return len(self._text)
        (_, before), (whole, shown) = self._marks[after - 1], self._marks[after]
        return min(max(before, shown - (whole - at)), shown)

    def _give(self, end: int) -> str:
        piece = self._text[self._given : end]
        self._given = max(self._given, end)
        return piece


def _overlap(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of the stop texts, which are sorted."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    for n in range(min(longest, len(text)), 0, -1):
        at = bisect_left(stops, text[-n:])  # whatever begins with it comes first from there on
        if at < len(stops) and stops[at].startswith(text[-n:]):
            return n
    return 0
