"""What is told of a data set in one line each, with the count of its examples."""

from __future__ import annotations

from collections import Counter

from ..errors import shorten
from ..notices import tell

SEAM = (
    "the prompt's last token and the completion's first would be others in one text; each is read alone, as in generation: "
    "a space between them belongs at the begin of the completion"
)


def left_out(what: str) -> str:
    """The line for what a chat template drops."""
    return f"the chat template does not write {what}; they are in no sample: use another template, or write them into the text"


def other_kind(kind: str, keys: list[str]) -> str:
    """The line for keys beside those that are trained."""
    return f"trained on {kind!r}; left aside: {', '.join(map(repr, keys))}"


def beside_columns(keys: list[str]) -> str:
    """The line for keys with a meaning beside the columns that were named."""
    return f"only the columns that were named are used; left aside: {', '.join(map(repr, keys))}"


def dropped(source: str, characters: set[str], n: int, n_examples: int) -> str:
    """The line for characters that become no token; n: of examples that hold some, 0 of a text."""
    where = f"{n:,} of {n_examples:,} examples hold" if n else "the text holds"
    shown = shorten((repr(character) for character in sorted(characters)), 8)
    return (
        f"{source}: {where} characters that the tokenizer has no token for, and drops ({shown}): the model neither sees nor "
        "learns them"
    )


def tell_counts(counts: Counter[str], n_examples: int, source: str) -> None:
    """Tell what happened to the examples of a data set, the most frequent first."""
    for line, n in counts.most_common():
        tell(f"{source}: {n:,} of {n_examples:,} examples: {line}")
