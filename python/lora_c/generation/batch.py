"""The loop of generation: answers to several prompts, decoded together, that join and leave between two steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core import DECODE_BATCH
from ..configs import GenerationConfig
from ..errors import AdapterError, ConfigError
from ..text.prompts import need_language_model, prompt_ids
from .answer import Answer, Writer, weights_of
from .sampling import with_seed

if TYPE_CHECKING:
    from .._core import KVCache
    from ..model.model import Model

_MOST_TOKENS = 4096  # of a sequence where nobody says; the cache takes memory for all of them


class Batch:
    """Answers to several prompts, each the same as alone, bit for bit, whatever it is decoded with.

    Parameters
    ----------
    model : Model
        Its adapters may be used side by side.
    n_sequences : int
        Answers that are under way at a time, 16 at most; others wait.
    max_tokens : int, optional
        The most that prompt and answer have together, for which the cache takes memory (and for virtual tokens of the model's
        adapters); by default the model's context, up to 4,096.

    Notes
    -----
    ``len(batch)`` is the number of answers that have not ended, and a batch without any counts as false.

    Examples
    --------
    >>> batch = lc.Batch(model)
    >>> poem = batch.add("Roses are red", adapter="poems", max_new_tokens=40)
    >>> plain = batch.add("Roses are red", adapter=None)
    >>> while batch:
    ...     ended = batch.step()
    ...     print(poem.take(), end="")  # what has come since the last call
    ...     for answer in ended:
    ...         print(answer.adapter, answer.text)
    """

    def __init__(self, model: Model, n_sequences: int = DECODE_BATCH, max_tokens: int | None = None) -> None:
        if not hasattr(model, "adapter_set"):
            raise ConfigError(f"model: expected a Model, got {type(model).__name__}; load_model makes one")
        need_language_model(model, "Batch")
        if not isinstance(n_sequences, int) or not 1 <= n_sequences <= DECODE_BATCH:
            raise ConfigError(f"n_sequences: expected 1 to {DECODE_BATCH}, got {n_sequences!r}; what is beyond waits")
        context = model.context_with(None)
        if max_tokens is not None and (not isinstance(max_tokens, int) or not 1 <= max_tokens <= context):
            raise ConfigError(f"max_tokens: expected 1 to the model's context of {context}, got {max_tokens!r}")
        self.model = model
        self.max_tokens = min(context, _MOST_TOKENS) if max_tokens is None else max_tokens
        self._free = list(range(n_sequences))
        self._cache: KVCache | None = None
        self._decoder = model.decoder  # that the cache is of
        self._stepping = Lock()
        self._waiting: deque[Writer] = deque()
        self._live: dict[Writer, int] = {}  # and its sequence in the cache
        self._ended: list[Answer] = []  # that no step has returned yet: one that an exception broke off returns nothing

    def __repr__(self) -> str:
        return f"Batch({len(self._live)} under way, {len(self._waiting)} waiting, max_tokens={self.max_tokens})"

    def __bool__(self) -> bool:
        return bool(self._waiting or self._live or self._ended)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._live)

    def add(
        self,
        prompt: Any,
        config: GenerationConfig | None = None,
        *,
        adapter: str | None | EllipsisType = ...,
        repetition: int = 0,
        **options: Any,
    ) -> Answer:
        """Let a prompt join; its answer begins with the next step that has room for it.

        Parameters
        ----------
        prompt : str, list of dict, or list of int
            A text, chat messages, or token ids, as for `Model.generate`.
        config, **options
            A `GenerationConfig` and/or its fields, but for num_return_sequences: add the prompt several times.
        adapter : str, optional
            The name of one of the model's adapters, or None for the bare base; by default what the model uses now.
        repetition : int
            With one seed, each repetition draws other tokens.

        Raises
        ------
        AdapterError
            There is no adapter of that name, or one is folded into the weights.
        ConfigError
            Prompt and answer can be longer than `max_tokens`.
        DataError
            The prompt cannot be read, or leaves the context no room.
        """
        config = with_seed(resolve(config, options))
        if not isinstance(repetition, int) or repetition < 0:
            raise ConfigError(f"repetition: expected 0 or more, got {repetition!r}")
        if config.num_return_sequences > 1:
            n = config.num_return_sequences
            raise ConfigError(f"num_return_sequences: expected 1 for one answer, got {n}; add it n times, with repetitions")
        name = self.model.active_adapter if isinstance(adapter, EllipsisType) else adapter
        _check_adapter(self.model, name)
        answer = Answer(prompt_ids(self.model, prompt, limit=self.model.context_with(name)), name)
        writer = Writer(self.model, answer, config, repetition)
        if writer.most_tokens > self.max_tokens:
            raise ConfigError(
                f"max_tokens: expected at least the {writer.most_tokens} tokens that prompt and answer can have, got "
                f"{self.max_tokens}; give Batch a larger max_tokens, or a smaller max_new_tokens"
            )
        self._waiting.append(writer)
        return answer

    def remove(self, answer: Answer) -> None:
        """Let an answer leave before its end; it keeps what it has. One that has ended stays as it is.

        Parameters
        ----------
        answer : Answer
            What `add` returned.
        """
        if not isinstance(answer, Answer):
            raise ConfigError(f"answer: expected what add returned, got {type(answer).__name__}")
        if answer.finished:
            return
        writer = next((w for w in (*self._live, *self._waiting) if w.answer is answer), None)
        if writer is None:
            raise ConfigError("answer: expected one of this batch, got one of another")
        writer.end()
        self._take_out(writer)

    def step(self) -> list[Answer]:
        """Write one token of every answer that is under way, begin waiting ones where there is room.

        An answer whose adapter was taken off, exchanged or merged meanwhile ends with its `error`; the others go on. A step
        that an exception broke off can be taken again. What the weights are must not change between two steps otherwise.

        Returns
        -------
        list of Answer
            Those that have ended with it, and those of a step before that was broken off.
        """
        if not self._stepping.acquire(blocking=False):
            raise RuntimeError("lora_c.Batch: in use by another thread; give each thread its own or take a lock")
        try:
            return self._step()
        finally:
            self._stepping.release()

    def _step(self) -> list[Answer]:
        self._end_those_of_other_weights()
        if self._decoder is not self.model.decoder:  # the embedding was resized; no answer of before is under way any more
            self._cache, self._decoder = None, self.model.decoder
        first = self._waiting[0].most_rows if self._waiting and not self._live else 0
        if self._cache is None or self._cache.max_tokens < first:  # an adapter that is younger than it has virtual tokens
            self._cache = None
            self._cache = self._decoder.new_cache(_rows(self.model, self.max_tokens), len(self._free))
        for writers in list(self._passes(self._live)):
            for writer, logits in zip(writers, self._decode(writers), strict=True):
                writer.advance(logits)
            self._sort_out(writers)
        while self._waiting and self._free and self._waiting[0].most_rows <= self._cache.max_tokens:
            self._live[self._waiting[0]] = self._free.pop()
            writer = self._waiting.popleft()
            writer.advance(self._read(writer))
            self._sort_out([writer])
        ended, self._ended = self._ended, []
        return ended

    def run(self) -> list[Answer]:
        """Take steps until every answer has ended; return them in the order of their ends."""
        ended = []
        while self:
            ended += self.step()
        return ended

    # -- passes -------------------------------------------------------------------------------------------------------

    def _passes(self, writers: Iterable[Writer]) -> Iterator[list[Writer]]:
        """Those that take this step in one call: of one precision, with adapters that can be used side by side."""
        shareable = self.model.adapter_set.is_shareable
        for alone, group in _grouped(writers, self._must_read):
            if alone:
                yield from ([writer] for writer in group)
                continue
            for _, same in _grouped(group, lambda w: w.precision):
                for _, together in _grouped(same, lambda w: None if shareable(w.answer.adapter) else w.answer.adapter):
                    yield together

    def _decode(self, writers: Sequence[Writer]) -> Iterable[NDArray[np.float32]]:
        """Logits after the last token of every answer."""
        if self._must_read(writers[0]):
            return [self._read(writers[0])]
        for writer in writers:  # an exception may have come between a call and the choice of its token
            if self._length(writer) > writer.n_tokens - 1:
                self._cache_of(writer).truncate(self._live[writer], writer.n_tokens - 1)
        return self._call(writers, [writer.answer.ids[-1] for writer in writers], list(range(len(writers) + 1)))

    def _read(self, writer: Writer) -> NDArray[np.float32]:
        """Logits after all tokens of one answer, read alone, so that they are what they are without the others."""
        self._cache_of(writer).truncate(self._live[writer], 0)
        ids = writer.answer.prompt + writer.answer.ids
        return self._call([writer], ids, [0, len(ids)])[0]

    def _call(self, writers: Sequence[Writer], ids: Sequence[int], cu_seqlens: Sequence[int]) -> NDArray[np.float32]:
        sequences = [self._live[writer] for writer in writers]
        with self.model.adapter_set.side_by_side([writer.answer.adapter for writer in writers]) as adapters:
            options: dict[str, Any] = {} if adapters is None else {"adapters": adapters}
            return self.model.decoder.decode(
                self._cache, ids, cu_seqlens=cu_seqlens, sequences=sequences, precision=writers[0].precision, **options
            )

    def _must_read(self, writer: Writer) -> bool:
        """Whether all of it is read, at its begin (again, where an exception ended that) and where the cache ends.

        LongRoPE: from rope_switch on, tokens have other angles, the ones before too.
        """
        switch = self.model.decoder.config["rope_switch"]
        begins = not writer.answer.ids or self._length(writer) < writer.n_tokens - 1
        return begins or (bool(switch) and writer.n_virtual + writer.n_tokens == switch + 1)

    def _cache_of(self, writer: Writer) -> KVCache:
        assert self._cache is not None and writer in self._live
        return self._cache

    def _length(self, writer: Writer) -> int:
        """The tokens of an answer that the cache holds."""
        return self._cache_of(writer).length(self._live[writer])

    # -- who is there, and with what ----------------------------------------------------------------------------------

    def _sort_out(self, writers: Iterable[Writer]) -> None:
        """Let those leave that have ended."""
        for writer in [writer for writer in writers if writer.answer.finished]:
            self._take_out(writer)
            self._ended.append(writer.answer)

    def _take_out(self, writer: Writer) -> None:
        if writer in self._waiting:
            self._waiting.remove(writer)
        if (sequence := self._live.pop(writer, None)) is not None:
            self._free.append(sequence)

    def _end_those_of_other_weights(self) -> None:
        writers = [*self._live, *self._waiting]
        for writer in writers:
            name = writer.answer.adapter
            if any(a is not b for a, b in zip(writer.weights, weights_of(self.model, name), strict=True)):
                what = "the bare base" if name is None else f"the adapter {name!r}"
                error = f"adapter: expected {what} as it was until the answer ends, got other weights; add the prompt again"
                writer.end(AdapterError(error))
        self._sort_out(writers)


def _rows(model: Model, max_tokens: int) -> int:
    """Of a cache, for an answer of max_tokens: virtual tokens of the model's adapters stand in it, too."""
    most = max((model.adapter_set[name].n_virtual for name in model.adapter_names), default=0)
    return min(max_tokens + most, model.context_with(None))


def _check_adapter(model: Model, name: str | None) -> None:
    if name is not None and name not in model.adapter_set:
        known = ", ".join(model.adapter_names) or "none"
        raise AdapterError(f"adapter: expected one of the model's adapters ({known}), got {name!r}")
    if model.is_merged and name != model.active_adapter:
        raise AdapterError(
            f"adapter: expected a model that is not merged, got one with {model.active_adapter!r} in its weights; call "
            "unmerge_adapter() first"
        )


def _grouped(writers: Iterable[Writer], key: Callable[[Writer], Any]) -> list[tuple[Any, list[Writer]]]:
    """Writers by a key, in the order of the first of each."""
    groups: dict[Any, list[Writer]] = {}
    for writer in writers:
        groups.setdefault(key(writer), []).append(writer)
    return list(groups.items())


def resolve(config: GenerationConfig | None, options: dict[str, Any]) -> GenerationConfig:
    """Combine a configuration with keyword options; an option wins."""
    if config is None:
        return GenerationConfig(**options)
    if not isinstance(config, GenerationConfig):
        raise ConfigError(f"config: expected a GenerationConfig, got {type(config).__name__}; or give options by keyword")
    return GenerationConfig(**(config.model_dump(exclude_unset=True) | options)) if options else config
