"""The bytes of single tokens, as answers with log-probabilities name them."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@lru_cache(maxsize=1)
def _byte_level() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


class TokenTexts:
    """Token ids to their bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder = tokenizer.backend.decoder
        self._is_byte_level = decoder is not None and "ByteLevel" in json.dumps(json.loads(decoder.__getstate__()))

    def bytes_of(self, token: int) -> bytes:
        """The bytes of one token; empty where the id is of none."""
        text = self._tokenizer.id_to_token(token) or ""
        if found := _BYTE_TOKEN.fullmatch(text):
            return bytes([int(found[1], 16)])
        table = _byte_level()
        if self._is_byte_level and all(character in table for character in text):
            return bytes(table[character] for character in text)
        return text.replace("\u2581", " ").encode("utf-8", "replace")

    def text_of(self, token: int) -> str:
        """The same as text; bytes that are no character by themselves are U+FFFD."""
        return self.bytes_of(token).decode("utf-8", "replace")
