"""Regular expressions of adapter configurations, matched within a bounded time.

They come from strangers' files, and Python's `re` cannot be stopped: `(a|a)*b` on a name of forty letters takes hours. The
`regex` package has the same syntax, and a time limit. What `re` refuses is refused, and so is the little that `regex` would
read in another way, so that a pattern means what it means in PEFT.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import AdapterError

MAX_SECONDS = 2.0  # for all names of all patterns of a configuration, where milliseconds are usual
MAX_LENGTH = 100_000
# Of a configuration; one for each matrix of the largest models makes 560 patterns of 20,000 characters.
MAX_PATTERNS, MAX_CHARACTERS = 10_000, 300_000
MAX_REPEATS = 10_000  # counted repetitions are written out when a pattern is compiled
# Names and character classes with anchors: nothing in them can be matched in two ways, `re` itself is quick.
_PLAIN = re.compile(r"[\w.^$\[\]\\-]*|\[\^\.\]\*")
_COUNTS = re.compile(r"\{(\d*),?(\d*)\}")
_OTHER_IN_REGEX = re.compile(r"\{(?!\d*,?\d*\})|\[:")
_WAY_OUT = "list the names of the modules instead"


class Matcher:
    """Matches the patterns of one configuration, each compiled once; together they have `MAX_SECONDS`."""

    def __init__(self) -> None:
        self.seconds_left = MAX_SECONDS
        self._known: dict[tuple[str, str, str], tuple[Any, bool]] = {}
        self._characters = 0

    def fullmatch(self, field: str, pattern: str, text: str) -> Any:
        """`re.fullmatch`. field: where the pattern stands, for messages.

        Raises
        ------
        AdapterError
            It is not a regular expression, or does not end in time.
        """
        return self._match("fullmatch", field, ("", pattern, ""), text)

    def match(self, field: str, pattern: str, text: str, before: str = "", after: str = "") -> Any:
        """`re.match` of the pattern between two harmless ones; raises as `fullmatch` does."""
        return self._match("match", field, (before, pattern, after), text)

    def _match(self, method: str, field: str, parts: tuple[str, str, str], text: str) -> Any:
        pattern = parts[1]
        compiled, is_quick = self._known.get(parts) or self._compile(field, parts)
        run = getattr(compiled, method)
        if is_quick:
            return run(text)
        started = time.perf_counter()
        try:
            return run(text, timeout=max(self.seconds_left, 0.001))
        except TimeoutError:
            raise AdapterError(
                f"{field}: expected a regular expression that ends, got {pattern[:80]!r}, which does not within "
                f"{MAX_SECONDS:g} seconds; {_WAY_OUT}"
            ) from None
        finally:
            self.seconds_left -= time.perf_counter() - started

    def _compile(self, field: str, parts: tuple[str, str, str]) -> tuple[Any, bool]:
        self._characters += len(parts[1])
        if len(self._known) >= MAX_PATTERNS or self._characters > MAX_CHARACTERS:
            raise AdapterError(
                f"{field}: expected at most {MAX_PATTERNS:,} patterns of {MAX_CHARACTERS:,} characters together, got more; "
                "is this the configuration of an adapter?"
            )
        with _one_line(field, parts[1]):
            found = self._known[parts] = _compiled(*parts)
        return found


def _compiled(before: str, pattern: str, after: str) -> tuple[Any, bool]:
    """The compiled pattern, and whether it is `re`'s, which needs no limit."""
    whole = before + pattern + after
    if len(pattern) > MAX_LENGTH:
        raise ValueError(f"{len(pattern)} characters where {MAX_LENGTH} are allowed")
    re.compile(pattern)  # alone, so that it cannot close a group around it
    compiled = re.compile(whole)
    if _PLAIN.fullmatch(pattern):
        return compiled, True
    if math.prod(max(1, *(int(n or 1) for n in counts)) for counts in _COUNTS.findall(pattern)) > MAX_REPEATS:
        raise ValueError(f"more than {MAX_REPEATS} counted repetitions")
    if _OTHER_IN_REGEX.search(pattern):
        raise ValueError("a brace that counts nothing, or [:")
    import regex  # type: ignore[import-untyped, unused-ignore]

    return regex.compile(whole, regex.VERSION0), False


@contextmanager
def _one_line(field: str, pattern: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of sets that may mean something else in a later Python
            yield
    except ImportError:
        got = f"{pattern[:80]!r} without it"
        raise AdapterError(f"{field}: expected the package regex, got {got}; install it, or {_WAY_OUT}") from None
    except Exception as error:  # both packages have errors of their own, and meet their limits in others
        got = f"{error} in {pattern[:80]!r}"
        raise AdapterError(f"{field}: expected valid regular expressions, got: {got}; {_WAY_OUT}") from None
