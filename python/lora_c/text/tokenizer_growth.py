"""How much longer a tokenizer.json makes a text: a stranger's file must not turn a sentence into all memory there is.

Its steps are run by a library that nobody can stop: forty replacements of "a" by "aa", one after the other, write 2**40
letters for one. So the steps are looked at before the first text is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import CheckpointError

MAX_GROWTH = 1000.0  # characters that all steps together may write for one; files in use write a few
MAX_ADDED = 10_000  # characters or tokens that are put around a text; files in use put fewer than ten
_MAY_BE_EMPTY = re.compile(r"[*?|^$]|\\[bBAGKzZ]|\{,|\{0|^$")  # expressions that perhaps match between two characters


def check_growth(tokenizer: Mapping[str, Any], where: str) -> None:
    """Refuse a tokenizer whose steps multiply what they are given, or put a book around it.

    Raises
    ------
    CheckpointError
        Its message begins with `where`.
    """
    for part, members in (("normalizer", "normalizers"), ("decoder", "decoders")):
        if _growth(list(_steps(tokenizer.get(part), members))) > MAX_GROWTH:
            raise CheckpointError(
                f"{where}: {part}: expected steps that write at most {MAX_GROWTH:,.0f} characters for one, got replacements "
                "that multiply to more"
            )
    added = [len(step["prepend"]) for step in _steps(tokenizer.get("normalizer"), "normalizers") if _is_text(step, "prepend")]
    added += [_tokens_around(step) for step in _steps(tokenizer.get("post_processor"), "processors")]
    if sum(added) > MAX_ADDED:
        raise CheckpointError(f"{where}: expected steps that add at most {MAX_ADDED:,} to a text, got {sum(added):,}")


def _steps(part: Any, members: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a part in their order; sequences may hold sequences."""
    waiting = [part]
    while waiting:
        step = waiting.pop()
        inner = step.get(members) if isinstance(step, Mapping) else None
        if isinstance(inner, list):
            waiting += reversed(inner)
        elif isinstance(step, Mapping):
            yield step


def _growth(steps: list[Mapping[str, Any]]) -> float:
    """What the longest outcome of one character is at most, found from the last step to the first."""
    others = 1.0  # what the steps so far write for a character that `written` does not have
    written: dict[str, float] = {}
    for step in reversed(steps):
        if step.get("type") != "Replace" or not _is_text(step, "content"):
            others, written = max(others, *written.values(), 1.0), {}  # it may write any character for any other
            continue
        of_content = sum(written.get(character, others) for character in step["content"])
        pattern = step.get("pattern")
        literal = pattern.get("String") if isinstance(pattern, Mapping) else pattern
        if isinstance(literal, str) and literal:
            share = of_content / len(literal)
            for character in literal:
                written[character] = share if len(literal) == 1 else max(written.get(character, others), share)
            continue
        expression = pattern.get("Regex") if isinstance(pattern, Mapping) else ""
        between = of_content if _MAY_BE_EMPTY.search(str(expression)) else 0.0
        written = {character: max(length, of_content) + between for character, length in written.items()}
        others = max(others, of_content) + between
    return max(others, *written.values(), 1.0)


def _is_text(step: Mapping[str, Any], key: str) -> bool:
    return isinstance(step.get(key), str)


def _tokens_around(step: Mapping[str, Any]) -> int:
    """Tokens that a post-processor puts around a text; a text that it writes many times counts as too much."""
    special, pieces = step.get("special_tokens"), step.get("single")
    if step.get("type") != "TemplateProcessing" or not isinstance(pieces, list):
        return 0
    known = special if isinstance(special, Mapping) else {}
    lengths = {name: len(token.get("ids") or ()) for name, token in known.items() if isinstance(token, Mapping)}
    total = 0
    for piece in pieces:
        named = piece.get("SpecialToken") if isinstance(piece, Mapping) else None
        total += lengths.get(str(named.get("id")), 1) if isinstance(named, Mapping) else MAX_ADDED // 10
    return total
