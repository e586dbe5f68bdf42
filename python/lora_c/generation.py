"""Text generation: prefill once, then one token at a time, greedy or sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .configs import GenerationConfig
from .errors import ConfigError, DataError

if TYPE_CHECKING:
    from .model import Model


def prompt_ids(model: Model, prompt: Any) -> list[int]:
    """Return the token ids of a text, of chat messages (rendered with the model's template), or of ids themselves."""
    if isinstance(prompt, str):
        ids = model.tokenizer.encode(prompt)
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


def generate_ids(model: Model, ids: Sequence[int], config: GenerationConfig) -> Iterator[int]:
    """Yield new token ids until an end token (not yielded), max_new_tokens, or the end of the context."""
    budget = min(config.max_new_tokens, model.context_length - len(ids))
    cache = model.decoder.new_cache(len(ids) + budget)
    generator = np.random.Generator(np.random.Philox(config.seed))
    ends = frozenset() if config.ignore_eos else model.eos_token_ids
    step, all_ids = np.asarray(ids, np.int32), list(ids)
    switch = model.decoder.config["rope_switch"]
    for _ in range(budget):
        logits = np.asarray(model.decoder.decode(cache, step)).reshape(-1)
        token = choose_token(logits, config, generator)
        if token in ends:
            return
        yield token
        all_ids.append(token)
        step = np.array([token], np.int32)
        if switch and len(all_ids) == switch + 1:  # longrope: from here on other frequencies, also for the tokens before
            cache.truncate(0, 0)
            step = np.asarray(all_ids, np.int32)


def generate_text(model: Model, prompt: Any, config: GenerationConfig) -> Iterator[str]:
    """Yield pieces of text; together they are the answer, without the prompt and without a stop string."""
    ids = prompt_ids(model, prompt)
    decoder = model.tokenizer.stream_decoder(ids)
    stops = [text for text in config.stop_strings if text]
    held = ""
    for token in generate_ids(model, ids, config):
        held += decoder.push(token)
        found = [at for at in (held.find(stop) for stop in stops) if at >= 0]
        if found:
            if min(found):
                yield held[: min(found)]
            return
        ready = len(held) - _overlap(held, stops)
        if ready:
            yield held[:ready]
            held = held[ready:]
    held += decoder.flush()
    if held:
        yield held


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
