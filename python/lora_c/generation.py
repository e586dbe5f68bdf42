"""Text generation: prefill once, then one token at a time, greedy or sampled, for one prompt or several together."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ._core import DECODE_BATCH
from .configs import GenerationConfig
from .errors import ConfigError, DataError
from .text_ids import prompt_token_ids

if TYPE_CHECKING:
    from ._core import KVCache
    from .model import Model


def prompt_ids(model: Model, prompt: Any) -> list[int]:
    """Return the token ids of a text, of chat messages (rendered with the model's template), or of ids themselves."""
    if isinstance(prompt, str):
        ids = prompt_token_ids(model.tokenizer, prompt)
    elif isinstance(prompt, (Sequence, np.ndarray)) and len(prompt) and all(isinstance(m, dict) for m in prompt):
        text = model.tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True)
        ids = model.tokenizer.encode(text, add_special_tokens=False)
    elif isinstance(prompt, (Sequence, np.ndarray)) and all(isinstance(i, (int, np.integer)) for i in prompt):
        ids = [int(i) for i in prompt]
    else:
        raise DataError(f"prompt: expected a text, a list of messages or a list of token ids, got {type(prompt).__name__}")
    vocab, limit = model.decoder.config["vocab_size"], model.context_length
    if not ids:
        raise DataError("prompt: expected at least one token, got none")
    wrong = next((i for i in ids if not 0 <= i < vocab), None)
    if wrong is not None:
        raise DataError(f"prompt: expected token ids from 0 to {vocab - 1}, got {wrong}; is the tokenizer this model's?")
    if len(ids) >= limit:
        raise DataError(f"prompt: expected fewer tokens than the model's context of {limit}, got {len(ids)}; shorten it")
    return ids


def is_batch(prompt: Any) -> bool:
    """Whether this is a list of prompts: of texts, of message lists, or of lists of token ids."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence) or not prompt:
        return False
    return all(isinstance(part, (str, Sequence, np.ndarray)) for part in prompt)


def probabilities(logits: NDArray[np.float32], config: GenerationConfig) -> NDArray[np.float64]:
    """Return the distribution to draw from: temperature, then top_k, then top_p, in float64.

    Shapes: logits (V,), result (V,)
    Source: nucleus sampling, arXiv:1904.09751
    """
    scores = logits.astype(np.float64) / config.temperature
    if 0 < config.top_k < scores.size:
        scores[scores < np.partition(scores, -config.top_k)[-config.top_k]] = -np.inf
    weights: NDArray[np.float64] = np.exp(scores - scores.max())
    weights /= weights.sum()
    if config.top_p < 1.0:
        order = np.argsort(-weights, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]
        weights[order[before >= config.top_p]] = 0.0
        weights /= weights.sum()
    return weights


def choose_token(logits: NDArray[np.float32], config: GenerationConfig, generator: np.random.Generator) -> int:
    """Return the next token: the first of the largest logits, or a draw."""
    if not config.sampling:
        return int(logits.argmax())
    bounds = np.cumsum(probabilities(logits, config))
    return min(int(np.searchsorted(bounds, generator.random() * bounds[-1], side="right")), logits.size - 1)


class TokenChooser:
    """Chooses the tokens of one answer until an end token, max_new_tokens, or the end of the context."""

    def __init__(self, model: Model, n_prompt: int, config: GenerationConfig) -> None:
        self.config = config
        self.budget = min(config.max_new_tokens, model.context_length - n_prompt)
        self._generator = np.random.Generator(np.random.Philox(config.seed))
        self._ends = frozenset() if config.ignore_eos else model.eos_token_ids

    def choose(self, logits: NDArray[np.float32]) -> int | None:
        """Return the next token, or None at an end token."""
        self.budget -= 1
        token = choose_token(logits, self.config, self._generator)
        return None if token in self._ends else token


class TextPieces:
    """Makes text of tokens, up to a stop string."""

    def __init__(self, model: Model, ids: Sequence[int], config: GenerationConfig) -> None:
        self._decoder = model.tokenizer.stream_decoder(ids)
        self._stops = [text for text in config.stop_strings if text]
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Return the text that is certain by now; it may be empty."""
        self._held += self._decoder.push(token)
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        self.stopped = bool(found)
        return self._release(min(found) if found else len(self._held) - _overlap(self._held, self._stops))

    def flush(self) -> str:
        """Return what was held back, after the last token."""
        if self.stopped:
            return ""
        self._held += self._decoder.flush()
        return self._release(len(self._held))

    def _release(self, n: int) -> str:
        ready, self._held = self._held[:n], self._held[n:]
        return ready


def precision_of(config: GenerationConfig) -> Literal["exact", "fast"]:
    """The precision of the products; a value that import would refuse cannot stand in the environment."""
    named = config.precision or os.environ.get("LORA_C_PRECISION")
    return "exact" if named == "exact" else "fast"


def must_read_again(model: Model, length: int) -> bool:
    """Whether the cache ends here. LongRoPE: from rope_switch on, tokens have other angles, the ones before too."""
    switch = model.decoder.config["rope_switch"]
    return bool(switch) and length == switch + 1


def generate_ids(model: Model, ids: Sequence[int], config: GenerationConfig) -> Iterator[int]:
    """Yield new token ids until an end token (not yielded), max_new_tokens, or the end of the context."""
    chooser = TokenChooser(model, len(ids), config)
    cache = model.decoder.new_cache(len(ids) + chooser.budget)
    step, all_ids = np.asarray(ids, np.int32), list(ids)
    precision = precision_of(config)
    while chooser.budget > 0:
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
    text = TextPieces(model, ids, config)
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

    Up to `DECODE_BATCH` sequences take a step in one call; when one ends, the next prompt takes its place.
    """
    all_ids = [prompt_ids(model, prompt) for prompt in prompts]
    choosers = [TokenChooser(model, len(ids), config) for ids in all_ids]
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
            answer = _Answer(i, free.pop(), list(all_ids[i]), choosers[i], TextPieces(model, all_ids[i], config))
            if goes_on(answer, _read(model, cache, answer)):
                live.append(answer)
        if live:
            live = [answer for answer, row in zip(live, _step(model, cache, live), strict=True) if goes_on(answer, row)]
    return texts


def _overlap(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of the stop strings."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    for n in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-n:]) for stop in stops):
            return n
    return 0


def resolve(config: GenerationConfig | None, options: dict[str, Any]) -> GenerationConfig:
    """Combine a configuration with keyword options; an option wins."""
    if config is None:
        return GenerationConfig(**options)
    if not isinstance(config, GenerationConfig):
        raise ConfigError(f"config: expected a GenerationConfig, got {type(config).__name__}; or give options by keyword")
    return GenerationConfig(**(config.model_dump(exclude_unset=True) | options)) if options else config
