"""Prompts that are read in blocks of a fixed size: what one sequence of a cache has read, another can copy.

The bits of keys and values depend on how many tokens are read together. A block that begins at a multiple of the size is read
the same way whatever comes behind it, and so a copied block and one that is read again are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .answer import weights_of

if TYPE_CHECKING:
    from .._core import KVCache
    from ..model.model import Model
    from .answer import Writer


class _Read(NamedTuple):
    """The whole blocks at the begin of a sequence, and what made them."""

    weights: tuple[object, ...]
    adapter: str | None
    precision: str
    ids: list[int]


class PromptBlocks:
    """The blocks that the sequences of a cache hold, also those of answers that have ended.

    Parameters
    ----------
    size : int
        Tokens of a block.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._read: dict[int, _Read] = {}

    def next_part(self, n_prompt: int, n_read: int) -> tuple[int, int]:
        """(begin, end) of what is read next, when so many tokens are in the cache; where all are, the last part again."""
        begin = min(n_read, n_prompt - 1) // self.size * self.size
        return begin, min(begin + self.size, n_prompt)

    def note(self, sequence: int, writer: Writer, n_read: int) -> None:
        """A sequence holds the first tokens of this answer's prompt."""
        ids = writer.answer.prompt[: n_read // self.size * self.size]
        self._read[sequence] = _Read(writer.weights, writer.answer.adapter, writer.precision, ids)

    def place(self, writer: Writer, free: Sequence[int], cache: KVCache) -> int:
        """Return the free sequence that an answer gets, with as much of its prompt as any sequence holds.

        Those that have been free the longest are given away first.
        """
        common = {at: self._common(read, writer) for at, read in self._read.items()}
        source, n = max(common.items(), key=lambda item: item[1], default=(0, 0))
        fresh = (at for at in free if at not in self._read)
        others = (at for at in free if not (n and at == source))
        target = next(fresh, next(others, source))
        if target != source or not n:
            self._read.pop(target, None)
        cache.copy(source if n else target, target, n)
        self.note(target, writer, n)
        writer.answer.n_reused = n
        return target

    def _common(self, read: _Read, writer: Writer) -> int:
        """Tokens of whole blocks that an answer's prompt begins with, too; one token at least is left to be read."""
        if read.precision != writer.precision or any(a is not b for a, b in zip(read.weights, writer.weights, strict=True)):
            return 0
        ids, prompt, n = read.ids, writer.answer.prompt, 0
        most = min(len(ids), (len(prompt) - 1) // self.size * self.size)
        while n < most and ids[n : n + self.size] == prompt[n : n + self.size]:
            n += self.size
        return n

    def forget(self, sequence: int) -> None:
        """A sequence is read otherwise from here on."""
        self._read.pop(sequence, None)

    def forget_other_weights(self, model: Model) -> None:
        """Forget what was read with adapters that were taken off or exchanged, which live no longer than this."""
        for sequence, read in list(self._read.items()):
            if any(a is not b for a, b in zip(read.weights, weights_of(model, read.adapter), strict=True)):
                del self._read[sequence]

    def clear(self) -> None:
        """Forget everything: there is another cache."""
        self._read.clear()
