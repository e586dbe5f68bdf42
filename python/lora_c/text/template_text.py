"""The text that a chat template wrote, asked for what it holds."""

from __future__ import annotations

import json


class Written:
    """A text that is asked whether it holds others, white space aside; what is asked in order is found fast."""

    def __init__(self, text: str) -> None:
        self._text = _squeezed(text)
        self._at = 0

    def holds(self, part: str) -> bool:
        """Whether the text holds the part, plainly or as JSON text."""
        for form in (part, json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1]):
            squeezed = _squeezed(form)
            at = self._text.find(squeezed, self._at)
            at = self._text.find(squeezed) if at < 0 else at
            if at >= 0:
                self._at = at + len(squeezed)
                return True
        return False


def _squeezed(text: str) -> str:
    return "".join(text.split())
