"""Token ids of plain texts: one begin, one end, and a prompt whose tokens are the same in training and in generation.

What stands before and after a text says the tokenizer's post-processor ("<s> $A", "[CLS] $A [SEP]"); the end token is added
where the post-processor adds none. A text that brings its begin or end itself does not get a second one. A prompt is a text
that is not finished: it gets the begin and never an end.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from .continuation import continuation_ids

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

_known: WeakKeyDictionary[Tokenizer, tuple[Any, list[int], list[int]]] = WeakKeyDictionary()
_PROBES = ("a", "0", "the", ".")  # any text that the tokenizer knows: what it adds does not depend on the text


@dataclass(frozen=True)
class PromptAndCompletion:
    """Ids of a prompt as generation starts from it, and of what follows it, the end included.

    `empty`: the completion says nothing but its end. `seam`: as one text both would have other tokens where they meet.
    """

    prompt: list[int]
    completion: list[int]
    empty: bool
    seam: bool


def begin_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that the tokenizer puts before every text."""
    return _added(tokenizer)[0]


def prompt_token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids that generation starts from: the text after the tokens that the tokenizer puts before one, once."""
    begin, _ = _frame(tokenizer)
    return _opened(tokenizer.encode(text, add_special_tokens=False), begin, tokenizer)


def whole_text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a finished text: one begin where the tokenizer has one, the text, one end."""
    begin, end = _frame(tokenizer)
    ids = _opened(tokenizer.encode(text, add_special_tokens=False), begin, tokenizer)
    return ids if _ended(tokenizer, text) else ids[: len(ids) - _n_end(ids[len(begin) :], end, tokenizer)] + end


def prompt_and_completion_ids(tokenizer: Tokenizer, prompt: str, completion: str) -> PromptAndCompletion:
    """Return the ids of a prompt and of its completion, the end token last.

    Both are read as one text where that leaves the prompt's tokens what they are in generation, so that a word which begins
    at the seam gets the tokens it has in prose; else each is read alone.
    """
    begin, end = _frame(tokenizer)
    before = tokenizer.encode(prompt, add_special_tokens=False)
    ids, seam = _after(tokenizer, prompt, before, completion)
    opened = _opened(before, begin, tokenizer)
    if opened[:1] and opened[0] in begin and tokenizer.bos_token_id != tokenizer.eos_token_id:
        ids = ids[_n_leading(ids, begin) :]  # the text has its begin already
    said = ids[: len(ids) - _n_end(ids, end, tokenizer)]
    if _ended(tokenizer, completion):
        empty = not completion.strip().removesuffix(tokenizer.special_tokens["eos_token"]).strip()
        return PromptAndCompletion(opened, ids, empty, seam)
    return PromptAndCompletion(opened, said + end, not said or not completion.strip(), seam)


def continued_prompt_ids(tokenizer: Tokenizer, prompt: str, text: str) -> tuple[list[int], list[int]]:
    """Return the ids that generation starts from, and those of a text that goes on after them, without an end."""
    begin, _ = _frame(tokenizer)
    before = tokenizer.encode(prompt, add_special_tokens=False)
    return _opened(before, begin, tokenizer), _after(tokenizer, prompt, before, text)[0]


def _after(tokenizer: Tokenizer, prompt: str, before: list[int], completion: str) -> tuple[list[int], bool]:
    """Ids of the completion alone, and whether the prompt would have other tokens in one text with it."""
    ids, offsets = tokenizer.encode_with_offsets(prompt + completion, add_special_tokens=False)
    n = len(before)
    ends_there = n == 0 or n > len(ids) or offsets[n - 1][1] <= len(prompt)  # tokens stand in the order of the text
    begins_there = n >= len(ids) or offsets[n][0] >= len(prompt)
    if ids[:n] == before and ends_there and begins_there:
        return ids[n:], False
    return continuation_ids(tokenizer, completion), True


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that stand before and after a finished text."""
    begin, end = _added(tokenizer)
    eos = tokenizer.eos_token_id
    return begin, end if eos is None or eos in end else [*end, eos]


def _added(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the post-processor puts before and after a text; looked for once, and again where it is another one."""
    if (backend := getattr(tokenizer, "backend", None)) is None:  # one of the caller's own
        return _find_added(tokenizer)
    state = None if backend.post_processor is None else backend.post_processor.__getstate__()
    known = _known.get(tokenizer)
    if known is None or known[0] != state:
        known = _known[tokenizer] = (state, *_find_added(tokenizer))
    return known[1], known[2]


def _find_added(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    for probe in _PROBES:
        if not (plain := tokenizer.encode(probe, add_special_tokens=False)):
            continue
        whole = tokenizer.encode(probe, add_special_tokens=True)
        n = len(plain)
        at = next((i for i in range(len(whole) - n + 1) if whole[i : i + n] == plain), None)
        return ([], []) if at is None else (whole[:at], whole[at + n :])
    return [], []


def _opened(ids: list[int], begin: list[int], tokenizer: Tokenizer) -> list[int]:
    """The ids after one begin: the tokenizer's, or the one that the text brings."""
    bos = tokenizer.bos_token_id
    n = _n_leading(ids, [*begin, bos])
    brought = [bos] if bos is not None and bos in ids[:n] and bos not in begin else []
    return [*brought, *begin, *ids[n:]]


def _n_leading(ids: list[int], tokens: Collection[int | None]) -> int:
    return sum(1 for _ in takewhile(lambda token: token in tokens, ids))


def _n_end(ids: list[int], end: list[int], tokenizer: Tokenizer) -> int:
    """How many of the last ids are ends that the text brings."""
    return _n_leading(ids[::-1], [*end, tokenizer.eos_token_id])


def _ended(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the text ends with the end token and white space after it, as chat templates write it."""
    stripped, eos = text.rstrip(), tokenizer.eos_token_id
    return eos is not None and stripped != text and tokenizer.encode(stripped, add_special_tokens=False)[-1:] == [eos]
