"""The tokens of one answer, chosen one by one until it ends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ..configs import GenerationConfig
from .logits import LogitsProcessor, bad_word_ids, check_token_ids
from .sampling import check_logits, choose_token, generator_of

if TYPE_CHECKING:
    from ..model.model import Model


class TokenChooser:
    """Chooses the tokens of one answer until an end token, max_new_tokens, or the end of the context."""

    def __init__(
        self, model: Model, prompt: Sequence[int], config: GenerationConfig, repetition: int = 0, adapter: str | None = None
    ) -> None:
        self.config = config
        self.budget = min(config.max_new_tokens, model.context_with(adapter) - len(prompt))
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


def precision_of(config: GenerationConfig) -> Literal["exact", "fast", "int8"]:
    """The precision of the products; a value that import would refuse cannot stand in the environment."""
    named = config.precision or os.environ.get("LORA_C_PRECISION")
    return named if named == "exact" or named == "int8" else "fast"
