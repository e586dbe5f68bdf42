"""Text generation: prefill once, then one token at a time, greedy or sampled, for one prompt or several together."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._core import DECODE_BATCH
from ..configs import GenerationConfig
from ..errors import ConfigError
from ..text.prompts import prompt_ids
from .answer_text import TextPieces
from .logits import LogitsProcessor, bad_word_ids, check_token_ids
from .sampling import check_logits, choose_token, generator_of

if TYPE_CHECKING:
    from .._core import KVCache
    from ..model.model import Model


class TokenChooser:
    """Chooses the tokens of one answer until an end token, max_new_tokens, or the end of the context."""

    def __init__(self, model: Model, prompt: Sequence[int], config: GenerationConfig, repetition: int = 0) -> None:
        self.config = config
        self.budget = min(config.max_new_tokens, model.context_length - len(prompt))
        self._generator = generator_of(config, repetition)
        self._ends = frozenset() if config.ignore_eos else model.eos_token_ids
        tokenizer = model.tokenizer if config.bad_words and model.has_tokenizer else None
        vocab_size = model.decoder.config["vocab_size"]
        check_token_ids(config, vocab_size)
        forbidden = bad_word_ids(config, tokenizer, vocab_size)
        self._process = LogitsProcessor(config, len(prompt), self.budget, self._ends, forbidden)
        self._ids = list(prompt)

    def choose(self, logits: NDArray[np.float32]) -> int | None:
        """Return the next token, or None at an end token."""
        self.budget -= 1
        check_logits(logits)
        scores = self._process(logits, self._ids)
        if scores is not logits:
            check_logits(scores)
        token = choose_token(scores, self.config, self._generator)
        self._ids.append(token)
        return None if token in self._ends else token


def precision_of(config: GenerationConfig) -> Literal["exact", "fast"]:
    """The precision of the products; a value that import would refuse cannot stand in the environment."""
    named = config.precision or os.environ.get("LORA_C_PRECISION")
    return "exact" if named == "exact" else "fast"


def must_read_again(model: Model, length: int) -> bool:
    """Whether the cache ends here. LongRoPE: from rope_switch on, tokens have other angles, the ones before too."""
    switch = model.decoder.config["rope_switch"]
    return bool(switch) and length == switch + 1


def _weights_in_use(model: Model) -> tuple[int, bool]:
    """What tells that keys and values in a cache were made with another adapter."""
    return id(model.adapter), model.is_merged


def generate_ids(model: Model, ids: Sequence[int], config: GenerationConfig) -> Iterator[int]:
    """Yield new token ids until an end token (not yielded), max_new_tokens, or the end of the context."""
    chooser = TokenChooser(model, ids, config)
    cache = model.decoder.new_cache(len(ids) + chooser.budget)
    step, all_ids = np.asarray(ids, np.int32), list(ids)
    precision, weights = precision_of(config), _weights_in_use(model)
    while chooser.budget > 0:
        if weights != _weights_in_use(model):
            raise ConfigError("stream: expected the same adapter until the answer ends, got another one; call stream again")
        token = chooser.choose(model.decoder.decode(cache, step, precision=precision)[0])
        if token is None:
            return
        yield token
        all_ids.append(token)
        step = np.array([token], np.int32)
        if must_read_again(model, len(all_ids)):
            cache.truncate(0, 0)
            step = np.asarray(all_ids, np.int32)


def generate_text(model: Model, prompt: Any, config: GenerationConfig) -> Iterator[str]:
    """Yield pieces of text; together they are the answer, without the prompt and without a stop string."""
    ids = prompt_ids(model, prompt)
    text = TextPieces(model.tokenizer, ids, config)
    for token in generate_ids(model, ids, config):
        if piece := text.push(token):
            yield piece
        if text.stopped:
            return
    if piece := text.flush():
        yield piece


@dataclass
class _Answer:
    """One prompt of a batch: its sequence in the cache, its tokens and its text so far."""

    index: int
    sequence: int
    ids: list[int]
    chooser: TokenChooser
    pieces: TextPieces
    text: str = ""

    def advance(self, logits: NDArray[np.float32]) -> bool:
        """Take the next token; False when the answer is complete."""
        token = self.chooser.choose(logits)
        if token is not None:
            self.ids.append(token)
            self.text += self.pieces.push(token)
            if self.chooser.budget > 0 and not self.pieces.stopped:
                return True
        self.text += self.pieces.flush()
        return False


def _read(model: Model, cache: KVCache, answer: _Answer) -> NDArray[np.float32]:
    """Logits after all tokens of one answer, read alone, so that they are what they are without the others."""
    cache.truncate(answer.sequence, 0)
    precision = precision_of(answer.chooser.config)
    return model.decoder.decode(cache, answer.ids, sequences=[answer.sequence], precision=precision)[0]


def _step(model: Model, cache: KVCache, live: Sequence[_Answer]) -> list[NDArray[np.float32]]:
    """Logits after the last token of every answer, in one call but for those whose cache ends."""
    again = {i for i, answer in enumerate(live) if must_read_again(model, len(answer.ids))}
    together = [answer for i, answer in enumerate(live) if i not in again]
    rows: Iterator[NDArray[np.float32]] = iter(())
    if together:
        tokens, sequences = [answer.ids[-1] for answer in together], [answer.sequence for answer in together]
        cu_seqlens = list(range(len(together) + 1))
        precision = precision_of(together[0].chooser.config)  # one configuration for all answers of a batch
        rows = iter(model.decoder.decode(cache, tokens, cu_seqlens=cu_seqlens, sequences=sequences, precision=precision))
    return [_read(model, cache, answer) if i in again else next(rows) for i, answer in enumerate(live)]


def generate_batch(model: Model, prompts: Sequence[Any], config: GenerationConfig) -> list[str]:
    """Return the answers to several prompts, each the same as alone (the seed too), decoded together.

    Each prompt is answered `num_return_sequences` times, by other draws of the same seed.

    Up to `DECODE_BATCH` sequences take a step in one call; when one ends, the next prompt takes its place.
    """
    n = config.num_return_sequences
    all_ids = [ids for prompt in prompts for ids in [prompt_ids(model, prompt)] * n]
    choosers = [TokenChooser(model, ids, config, repetition=i % n) for i, ids in enumerate(all_ids)]
    texts = [""] * len(all_ids)
    longest = max(len(ids) + chooser.budget for ids, chooser in zip(all_ids, choosers, strict=True))
    free = list(range(min(len(all_ids), DECODE_BATCH)))
    cache = model.decoder.new_cache(longest, len(free))
    waiting = deque(range(len(all_ids)))
    live: list[_Answer] = []

    def goes_on(answer: _Answer, logits: NDArray[np.float32]) -> bool:
        if answer.advance(logits):
            return True
        texts[answer.index] = answer.text
        free.append(answer.sequence)
        return False

    while waiting or live:
        while waiting and free:
            i = waiting.popleft()
            answer = _Answer(i, free.pop(), list(all_ids[i]), choosers[i], TextPieces(model.tokenizer, all_ids[i], config))
            if goes_on(answer, _read(model, cache, answer)):
                live.append(answer)
        if live:
            live = [answer for answer, row in zip(live, _step(model, cache, live), strict=True) if goes_on(answer, row)]
    return texts


def resolve(config: GenerationConfig | None, options: dict[str, Any]) -> GenerationConfig:
    """Combine a configuration with keyword options; an option wins."""
    if config is None:
        return GenerationConfig(**options)
    if not isinstance(config, GenerationConfig):
        raise ConfigError(f"config: expected a GenerationConfig, got {type(config).__name__}; or give options by keyword")
    return GenerationConfig(**(config.model_dump(exclude_unset=True) | options)) if options else config
