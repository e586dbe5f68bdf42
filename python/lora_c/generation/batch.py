"""The loop of generation: answers to several prompts, decoded together, that join and leave between two steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core import DECODE_BATCH
from ..configs import GenerationConfig
from ..errors import AdapterError, ConfigError
from ..text.prompts import prompt_ids
from .answer import Answer
from .sampling import with_seed

if TYPE_CHECKING:
    from .._core import KVCache
    from ..model.model import Model

IN_USE = "the adapter in use"  # no name: `add` takes what the model uses then
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
        The most that prompt and answer have together, for which the cache takes memory; by default the model's context, up
        to 4,096.

    Examples
    --------
    >>> batch = lc.Batch(model)
    >>> poem = batch.add("Roses are red", adapter="poems", max_new_tokens=40)
    >>> plain = batch.add("Roses are red", adapter=None)
    >>> while batch:
    ...     for answer in batch.step():
    ...         print(answer.adapter, answer.text)
    """

    def __init__(self, model: Model, n_sequences: int = DECODE_BATCH, max_tokens: int | None = None) -> None:
        if not 1 <= n_sequences <= DECODE_BATCH:
            raise ConfigError(f"n_sequences: expected 1 to {DECODE_BATCH}, got {n_sequences}; what is beyond waits")
        context = model.context_length
        if max_tokens is not None and not 1 <= max_tokens <= context:
            raise ConfigError(f"max_tokens: expected 1 to the model's context of {context}, got {max_tokens}")
        self.model = model
        self.max_tokens = min(context, _MOST_TOKENS) if max_tokens is None else max_tokens
        self._free = list(range(n_sequences))
        self._cache: KVCache | None = None
        self._waiting: deque[Answer] = deque()
        self._live: dict[Answer, int] = {}  # and its sequence in the cache
        self._weights: dict[Answer, object] = {}  # what each answer was begun with

    def __bool__(self) -> bool:
        return bool(self._waiting or self._live)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._live)

    def add(
        self,
        prompt: Any,
        config: GenerationConfig | None = None,
        *,
        adapter: str | None = IN_USE,
        repetition: int = 0,
        **options: Any,
    ) -> Answer:
        """Let a prompt join; its answer begins with the next step that has room for it.

        Parameters
        ----------
        prompt : str, list of dict, or list of int
            A text, chat messages, or token ids, as for `Model.generate`.
        config, **options
            A `GenerationConfig` and/or its fields.
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
        name = self.model.active_adapter if adapter is IN_USE else adapter
        self._check_adapter(name)
        answer = Answer(self.model, prompt_ids(self.model, prompt), config, name, repetition)
        if answer.most_tokens > self.max_tokens:
            raise ConfigError(
                f"max_tokens: expected at least the {answer.most_tokens} tokens that prompt and answer can have, got "
                f"{self.max_tokens}; give Batch a larger max_tokens, or a smaller max_new_tokens"
            )
        self._weights[answer] = self._weights_of(name)
        self._waiting.append(answer)
        return answer

    def remove(self, answer: Answer) -> None:
        """Let an answer leave before its end; it keeps what it has."""
        if answer in self._waiting:
            self._waiting.remove(answer)
        answer.end()
        self._leave(answer)

    def step(self) -> list[Answer]:
        """Write one token of every answer that is under way, begin waiting ones where there is room.

        Returns
        -------
        list of Answer
            Those that have ended with it.

        Raises
        ------
        ConfigError
            An adapter was taken off, exchanged or merged before its answers had ended.
        """
        self._check_weights()
        if self._cache is None:
            self._cache = self.model.decoder.new_cache(self.max_tokens, len(self._free))
        before = list(self._live)
        for answers in self._passes(before):
            for answer, logits in zip(answers, self._decode(answers), strict=True):
                answer.advance(logits)
        for answer in before:
            if answer.finished:
                self._leave(answer)
        begun = []
        while self._waiting and self._free:
            answer = self._waiting.popleft()
            self._live[answer] = self._free.pop()
            begun.append(answer)
            answer.advance(self._read(answer))
            if answer.finished:
                self._leave(answer)
        return [answer for answer in (*before, *begun) if answer.finished]

    def run(self) -> list[Answer]:
        """Take steps until every answer has ended; return them in the order of their ends."""
        ended = []
        while self:
            ended += self.step()
        return ended

    # -- passes -------------------------------------------------------------------------------------------------------

    def _passes(self, answers: Sequence[Answer]) -> Iterator[list[Answer]]:
        """The answers that take this step in one call: of one precision, with adapters that can be used side by side."""
        shareable = self.model.adapter_set.is_shareable
        for again, group in _grouped(answers, self._must_read):
            if again:
                yield from ([answer] for answer in group)
                continue
            for _, same in _grouped(group, lambda a: a.precision):
                for _, together in _grouped(same, lambda a: None if shareable(a.adapter) else a.adapter):
                    yield together

    def _decode(self, answers: Sequence[Answer]) -> Iterable[NDArray[np.float32]]:
        """Logits after the last token of every answer."""
        if self._must_read(answers[0]):
            return [self._read(answers[0])]
        for answer in answers:  # an exception may have come between a call and the choice of its token
            if self._length(answer) > answer.n_tokens - 1:
                self._cache_of(answer).truncate(self._live[answer], answer.n_tokens - 1)
        return self._call(answers, [answer.ids[-1] for answer in answers], list(range(len(answers) + 1)))

    def _read(self, answer: Answer) -> NDArray[np.float32]:
        """Logits after all tokens of one answer, read alone, so that they are what they are without the others."""
        self._cache_of(answer).truncate(self._live[answer], 0)
        ids = answer.all_ids
        return self._call([answer], ids, [0, len(ids)])[0]

    def _call(self, answers: Sequence[Answer], ids: Sequence[int], cu_seqlens: Sequence[int]) -> NDArray[np.float32]:
        sequences = [self._live[answer] for answer in answers]
        with self.model.adapter_set.side_by_side([answer.adapter for answer in answers]) as adapters:
            options: dict[str, Any] = {} if adapters is None else {"adapters": adapters}
            return self.model.decoder.decode(
                self._cache, ids, cu_seqlens=cu_seqlens, sequences=sequences, precision=answers[0].precision, **options
            )

    def _must_read(self, answer: Answer) -> bool:
        """Whether all of it is read, at its begin (again, where an exception ended that) and where the cache ends.

        LongRoPE: from rope_switch on, tokens have other angles, the ones before too.
        """
        switch = self.model.decoder.config["rope_switch"]
        begins = not answer.ids or self._length(answer) < answer.n_tokens - 1
        return begins or (bool(switch) and answer.n_tokens == switch + 1)

    def _cache_of(self, answer: Answer) -> KVCache:
        assert self._cache is not None and answer in self._live
        return self._cache

    def _length(self, answer: Answer) -> int:
        """The tokens of an answer that the cache holds."""
        return self._cache_of(answer).length(self._live[answer])

    # -- what answers are made with -----------------------------------------------------------------------------------

    def _leave(self, answer: Answer) -> None:
        sequence = self._live.pop(answer, None)
        if sequence is not None:
            self._free.append(sequence)
        self._weights.pop(answer, None)

    def _check_adapter(self, name: str | None) -> None:
        model = self.model
        if name is not None and name not in model.adapter_set:
            known = ", ".join(model.adapter_names) or "none"
            raise AdapterError(f"adapter: expected one of the model's adapters ({known}), got {name!r}")
        if model.is_merged and name != model.active_adapter:
            raise AdapterError(
                f"adapter: expected a model that is not merged, got one with {model.active_adapter!r} in its weights; call "
                "unmerge_adapter() first"
            )

    def _weights_of(self, name: str | None) -> tuple[object, ...]:
        """What tells that keys and values in the cache were made with other weights."""
        return (None if name is None else self.model.adapter_set[name]), self.model.merged

    def _check_weights(self) -> None:
        for answer in (*self._live, *self._waiting):
            name = answer.adapter
            gone = name is not None and name not in self.model.adapter_set
            if gone or any(a is not b for a, b in zip(self._weights[answer], self._weights_of(name), strict=True)):
                raise ConfigError(
                    f"adapter: expected {name or 'the base'} as it was until its answers end, got it taken off, exchanged or "
                    "merged; remove(answer) and add the prompt again"
                )


def _grouped(answers: Iterable[Answer], key: Any) -> list[tuple[Any, list[Answer]]]:
    """Answers by a key, in the order of the first of each."""
    groups: dict[Any, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(key(answer), []).append(answer)
    return list(groups.items())


def resolve(config: GenerationConfig | None, options: dict[str, Any]) -> GenerationConfig:
    """Combine a configuration with keyword options; an option wins."""
    if config is None:
        return GenerationConfig(**options)
    if not isinstance(config, GenerationConfig):
        raise ConfigError(f"config: expected a GenerationConfig, got {type(config).__name__}; or give options by keyword")
    return GenerationConfig(**(config.model_dump(exclude_unset=True) | options)) if options else config
