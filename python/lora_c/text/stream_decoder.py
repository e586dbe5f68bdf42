"""Text of a growing token sequence, piece by piece, so that the pieces joined are the text of the whole.

What a token adds depends on its surroundings: a character can lie in several tokens, and some decoders write a space before
every token but the first. So a window of the last tokens is decoded again and again, and the text beyond what was given is the
new piece.

* Held back is what later tokens can still change: a character that is not complete, and with bytes as tokens (`<0xE6>`) the
  whole run of them, of which the library makes U+FFFD throughout as long as one byte is missing.
* The window begins with a token that is complete and no white space by itself. Whatever a decoder does to the beginning of a
  text then happens to that token, which is in the window both before and after.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_LONGEST = 24  # tokens of a window; then a later beginning is looked for
_INCOMPLETE = "\ufffd"


class StreamDecoder:
    """Gives the text that each new token completes.

    The text of the prompt is never given. Where the prompt ends inside a character, the character belongs to the answer.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._bytes_fall_back = tokenizer.has_byte_tokens
        self._skipped = tokenizer.skipped_tokens if skip_special_tokens and self._bytes_fall_back else frozenset()
        self._window = [int(i) for i in prompt_ids]
        self._window = self._window[self._beginning(len(self._window)) :]
        self._prompt: str | None = self._decode(self._window)  # until the answer has text
        self._given = 0  # characters of the window's text
        self._complete: list[int] = []  # lengths of the window at which nothing was held back

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is complete now (often one word, sometimes nothing)."""
        self._window.append(int(token_id))
        if self._bytes_fall_back and self._in_bytes():
            return ""
        text = self._decode(self._window)
        stable = text.rstrip(_INCOMPLETE)
        piece = self._take(stable)
        if len(stable) == len(text):
            self._shorten()
        return piece

    def flush(self) -> str:
        """Return what was held back; an incomplete character becomes U+FFFD."""
        return self._take(self._decode(self._window))

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, self._skip)

    def _take(self, text: str) -> str:
        if self._prompt is not None:
            shared = _shared(self._prompt, text)
            if len(text) == shared:
                return ""
            self._given, self._prompt = shared, None
        piece = text[self._given :]
        self._given += len(piece)
        return piece

    def _in_bytes(self) -> bool:
        """Whether the last token that has text is a single byte."""
        for i in reversed(self._window):
            token = self._tokenizer.id_to_token(i)
            if token not in self._skipped:
                return token is not None and _BYTE_TOKEN.fullmatch(token) is not None
        return False

    def _shorten(self) -> None:
        """Let the window begin later, where the text of the rest stands on its own."""
        if self._prompt is not None:
            return
        self._complete.append(len(self._window))
        if len(self._window) <= _LONGEST:
            return
        start = self._beginning(len(self._window))
        if not start:
            usable = (n for n in reversed(self._complete[:-1]) if self._decode(self._window[n:]).strip())
            start = next(usable, 0)
        if start:
            self._window = self._window[start:]
            self._given = len(self._decode(self._window))
            self._complete = [n - start for n in self._complete if n > start]

    def _beginning(self, end: int) -> int:
        """The last position before `end` whose token is complete and no white space by itself; 0 where there is none."""
        for i in range(end - 1, 0, -1):
            token = self._tokenizer.id_to_token(self._window[i])
            if token is None or (self._bytes_fall_back and _BYTE_TOKEN.fullmatch(token)):
                continue
            text = self._decode(self._window[i : i + 1])
            if text.strip() and _INCOMPLETE not in text:
                return i
        return 0


def _shared(one: str, other: str) -> int:
    """Length of the common beginning."""
    n = min(len(one), len(other))
    return next((i for i in range(n) if one[i] != other[i]), n)
