"""Token ids of a text, or of two, as a classifier reads them: what the tokenizer makes of them and nothing more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DataError

if TYPE_CHECKING:
    import tokenizers

    from .tokenizer import Tokenizer


def sequence_ids(tokenizer: Tokenizer, text: str, pair: str | None, length: int) -> tuple[list[int], bool]:
    """Return the ids of one text or two, of up to `length` tokens, and whether any were cut.

    As in transformers with truncation=True: tokens that the tokenizer adds stay, the end of the text goes; of two texts the
    longer one is cut until both are of one length.

    Raises
    ------
    DataError
        Nothing of a text is left, or it is none.
    """
    encoding = tokenizer.encoding_of(text, pair)
    ids: list[int] = list(encoding.ids)
    if not ids:
        raise DataError("expected a text with at least one token, got an empty one")
    if len(ids) <= length:
        return ids, False
    parts = _parts_of(encoding)
    room = length - parts.count(None)
    kept = _kept(parts.count(0), parts.count(1), room)
    if room < 1 or (pair is not None and min(kept) < 1):
        raise DataError(
            f"max_seq_length: expected room for the text beside the {parts.count(None)} tokens that the tokenizer adds, got "
            f"{length}"
        )
    left = list(kept)
    cut = []
    for i, part in zip(ids, parts, strict=True):
        if part is None:
            cut.append(i)
        elif left[part] > 0:
            cut.append(i)
            left[part] -= 1
    return cut, True


def _parts_of(encoding: tokenizers.Encoding) -> list[int | None]:
    """Which text each token is of; None: the tokenizer has added it."""
    marks = zip(encoding.sequence_ids, encoding.special_tokens_mask, strict=True)
    return [None if part is None or added else int(part) for part, added in marks]


def _kept(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text stay: the rule "longest_first" of transformers."""
    short, long = sorted((first, second))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (short, long) if first <= second else (long, short)
