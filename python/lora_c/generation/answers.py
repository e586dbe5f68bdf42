"""Text generation: greedy or sampled, for one prompt, piece by piece, or for several together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .._core import DECODE_BATCH
from ..configs import GenerationConfig
from ..errors import ConfigError
from ..text.prompts import prompt_ids
from .answer import Answer
from .batch import Batch

if TYPE_CHECKING:
    from ..model.model import Model


def _weights_in_use(model: Model) -> tuple[int, bool]:
    """What tells that an answer goes on with another adapter than it has begun with."""
    return id(model.adapter), model.is_merged


def _steps(model: Model, ids: Sequence[int], config: GenerationConfig) -> Iterator[Answer]:
    """One answer, yielded after each of its tokens and once at its end."""
    weights = _weights_in_use(model)
    batch = Batch(model, 1, min(len(ids) + config.max_new_tokens, model.context_length))
    answer = batch.add(list(ids), config)
    while batch:
        if weights != _weights_in_use(model):
            raise ConfigError("stream: expected the same adapter until the answer ends, got another one; call stream again")
        batch.step()
        if answer.error is not None:
            raise answer.error
        yield answer


def generate_ids(model: Model, ids: Sequence[int], config: GenerationConfig) -> Iterator[int]:
    """Yield new token ids until an end token (not yielded), max_new_tokens, or the end of the context."""
    given = 0
    for answer in _steps(model, ids, config):
        yield from answer.ids[given:]
        given = len(answer.ids)


def generate_text(model: Model, prompt: Any, config: GenerationConfig) -> Iterator[str]:
    """Yield pieces of text; together they are the answer, without the prompt and without a stop string."""
    model.tokenizer  # noqa: B018  a model without one is refused before it works
    for answer in _steps(model, prompt_ids(model, prompt), config):
        if piece := answer.take():
            yield piece


def generate_batch(model: Model, prompts: Sequence[Any], config: GenerationConfig) -> list[str]:
    """Return the answers to several prompts, each the same as alone (the seed too), decoded together.

    Each prompt is answered `num_return_sequences` times, by other draws of the same seed.
    """
    model.tokenizer  # noqa: B018
    n = config.num_return_sequences
    all_ids = [prompt_ids(model, prompt) for prompt in prompts]
    longest = max(min(len(ids) + config.max_new_tokens, model.context_length) for ids in all_ids)
    batch = Batch(model, min(n * len(all_ids), DECODE_BATCH), longest)
    one = config.model_copy(update={"num_return_sequences": 1})
    answers = [batch.add(ids, one, repetition=i) for ids in all_ids for i in range(n)]
    batch.run()
    failed = next((answer.error for answer in answers if answer.error is not None), None)
    if failed is not None:
        raise failed
    return [answer.text for answer in answers]
