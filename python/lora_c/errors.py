"""The errors that users meet.

Every message is one line: what was expected, what was given, and the way out.
All of them are `ValueError`, so code that knows nothing of this package still catches them.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST = 800  # characters of a message; what was given may be of any size


class LoraCError(ValueError):
    """Base of the errors raised by the Python side of lora_c; the message is one line, its middle cut where it is long."""

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
        super().__init__(line)


class CheckpointError(LoraCError):
    """A model folder, or a file in it, cannot be used."""


class AdapterError(LoraCError):
    """An adapter cannot be read, or does not fit the model."""


class DataError(LoraCError):
    """Training data, a prompt or a chat template cannot be used."""


class ConfigError(LoraCError):
    """An option has an unknown name or a value out of range; `problems` are the options, and what is wrong with each."""

    def __init__(self, message: str, problems: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class FitError(LoraCError):
    """A run would take more memory than there is; the message names what it takes, and the change that makes it fit."""


class SaveError(LoraCError):
    """A file could not be written; what was there before is unchanged."""


class DivergenceError(LoraCError):
    """Training came to numbers that are not finite; the message names the last finite state."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the known name closest to `name`, or an empty string."""
    found = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else ""


def shorten(items: Iterable[object], limit: int = 5) -> str:
    """Join the first `limit` items with commas and say how many more there are."""
    texts = [str(item) for item in items]
    rest = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + rest
