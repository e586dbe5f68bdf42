"""The answers that are under way, each in a sequence of one KV cache: what a step reads, and how answers share a call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .answer import Writer
from .prompt_blocks import PromptBlocks

if TYPE_CHECKING:
    from .._core import KVCache
    from ..model.model import Model


class Sequences:
    """Who has which sequence of the cache, and the calls of the decoder.

    Parameters
    ----------
    n_sequences, max_tokens, prompt_block
        As `Batch` has them.
    """

    def __init__(self, model: Model, n_sequences: int, max_tokens: int, prompt_block: int | None) -> None:
        self.model, self.max_tokens = model, max_tokens
        self.live: dict[Writer, int] = {}  # and its sequence in the cache
        self.blocks = PromptBlocks(prompt_block) if prompt_block and not model.decoder.config["rope_switch"] else None
        self._free = list(range(n_sequences))
        self._cache: KVCache | None = None
        self._decoder = model.decoder  # that the cache is of

    def prepare(self, next_rows: int) -> None:
        """Make the cache: where there is none, or one of another decoder, or the next answer, alone, needs a longer one."""
        if self._decoder is not self.model.decoder:  # the embedding was resized; no answer of before is under way any more
            self._cache, self._decoder = None, self.model.decoder
        first = 0 if self.live else next_rows
        if self._cache is None or self._cache.max_tokens < first:  # an adapter that is younger than it has virtual tokens
            self._cache = None
            self._cache = self._decoder.new_cache(_rows(self.model, self.max_tokens), len(self._free))
            if self.blocks is not None:
                self.blocks.clear()

    def fits(self, writer: Writer) -> bool:
        """Whether there is a sequence left, and long enough."""
        return bool(self._free) and self._cache is not None and writer.most_rows <= self._cache.max_tokens

    def take_in(self, writer: Writer) -> None:
        """Give an answer a sequence."""
        if self.blocks is None:
            self.live[writer] = self._free.pop()
            return
        assert self._cache is not None
        sequence = self.blocks.place(writer, self._free, self._cache)
        self.live[writer] = sequence
        self._free.remove(sequence)

    def take_out(self, writer: Writer) -> None:
        """Let another one have its sequence."""
        if (sequence := self.live.pop(writer, None)) is not None:
            self._free.append(sequence)

    def writing(self) -> list[Writer]:
        """Those whose prompt is read."""
        return [writer for writer in self.live if writer.answer.ids or self.blocks is None]

    def reading(self) -> Writer | None:
        """The first one whose prompt is not read to its end."""
        return next((writer for writer in self.live if not writer.answer.ids), None)

    def read_block(self, writer: Writer, blocks: PromptBlocks) -> tuple[int, NDArray[np.float32] | None]:
        """Read the next block of a prompt; return its tokens, and after the last one the logits."""
        sequence, prompt = self.live[writer], writer.answer.prompt
        begin, end = blocks.next_part(len(prompt), self._length(writer))
        self._cache_of(writer).truncate(sequence, begin)
        logits = self._call([writer], prompt[begin:end], [0, end - begin])[0]
        blocks.note(sequence, writer, end)
        return end - begin, logits if end == len(prompt) else None

    def passes(self, writers: Iterable[Writer]) -> Iterator[list[Writer]]:
        """Those that take this step in one call: of one precision, with adapters that can be used side by side."""
        shareable = self.model.adapter_set.is_shareable
        for alone, group in _grouped(writers, self._must_read):
            if alone:
                yield from ([writer] for writer in group)
                continue
            for _, same in _grouped(group, lambda w: w.precision):
                for _, together in _grouped(same, lambda w: None if shareable(w.answer.adapter) else w.answer.adapter):
                    yield together

    def decode(self, writers: Sequence[Writer]) -> Iterable[NDArray[np.float32]]:
        """Logits after the last token of every answer."""
        if self._must_read(writers[0]):
            return [self.read(writers[0])]
        for writer in writers:  # an exception may have come between a call and the choice of its token
            if self._length(writer) > writer.n_tokens - 1:
                self._cache_of(writer).truncate(self.live[writer], writer.n_tokens - 1)
        return self._call(writers, [writer.answer.ids[-1] for writer in writers], list(range(len(writers) + 1)))

    def read(self, writer: Writer) -> NDArray[np.float32]:
        """Logits after all tokens of one answer, read alone, so that they are what they are without the others."""
        self._cache_of(writer).truncate(self.live[writer], 0)
        if self.blocks is not None:
            self.blocks.forget(self.live[writer])
        ids = writer.answer.prompt + writer.answer.ids
        logits: NDArray[np.float32] = self._call([writer], ids, [0, len(ids)])[0]
        return logits

    def _call(self, writers: Sequence[Writer], ids: Sequence[int], cu_seqlens: Sequence[int]) -> NDArray[np.float32]:
        sequences = [self.live[writer] for writer in writers]
        with self.model.adapter_set.side_by_side([writer.answer.adapter for writer in writers]) as adapters:
            options: dict[str, Any] = {"precision": writers[0].precision}
            options |= {} if adapters is None else {"adapters": adapters}
            return self.model.decoder.decode(
                self._cache_of(writers[0]), ids, cu_seqlens=cu_seqlens, sequences=sequences, **options
            )

    def _must_read(self, writer: Writer) -> bool:
        """Whether all of it is read, at its begin (again, where an exception ended that) and where the cache ends.

        LongRoPE: from rope_switch on, tokens have other angles, the ones before too.
        """
        switch = self.model.decoder.config["rope_switch"]
        begins = not writer.answer.ids or self._length(writer) < writer.n_tokens - 1
        return begins or (bool(switch) and writer.n_virtual + writer.n_tokens == switch + 1)

    def _cache_of(self, writer: Writer) -> KVCache:
        assert self._cache is not None and writer in self.live
        return self._cache

    def _length(self, writer: Writer) -> int:
        """The tokens of an answer that the cache holds."""
        return self._cache_of(writer).length(self.live[writer])


def _rows(model: Model, max_tokens: int) -> int:
    """Of a cache, for an answer of max_tokens: virtual tokens of the model's adapters stand in it, too."""
    most = max((model.adapter_set[name].n_virtual for name in model.adapter_names), default=0)
    return min(max_tokens + most, model.context_with(None))


def _grouped(writers: Iterable[Writer], key: Callable[[Writer], Any]) -> list[tuple[Any, list[Writer]]]:
    """Writers by a key, in the order of the first of each."""
    groups: dict[Any, list[Writer]] = {}
    for writer in writers:
        groups.setdefault(key(writer), []).append(writer)
    return list(groups.items())
