"""Characters that a tokenizer has no token for and drops: its vocabulary lacks some bytes, and an unknown token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol


class _Reader(Protocol):
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str: ...


class DroppedCharacters:
    """Finds them in texts; each character is tried once."""

    def __init__(self, tokenizer: _Reader) -> None:
        self._tokenizer = tokenizer
        self._kept: set[str] = set()
        self._dropped: set[str] = set()

    def of(self, text: str) -> set[str]:
        """The characters of a text that are in none of its tokens."""
        characters = set(text) if hasattr(self._tokenizer, "decode") else set()  # a tokenizer of the caller's own
        for character in characters - self._kept - self._dropped:
            (self._dropped if self._is_dropped(character) else self._kept).add(character)
        return characters & self._dropped

    def of_record(self, record: Any) -> set[str]:
        """The same of all texts in a record."""
        return set().union(*map(self.of, _texts(record)))

    def _is_dropped(self, character: str) -> bool:
        if "\ud800" <= character <= "\udfff":  # refused where the text is read
            return False
        text = f"a{character}b" if character.isspace() else character
        read = self._tokenizer.decode(self._tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=False)
        return read == "ab" if character.isspace() else not read or "\ufffd" in read and character != "\ufffd"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
