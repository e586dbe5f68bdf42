"""Prompts to token ids: a text, messages of a conversation, or ids themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError, DataError
from .text_ids import prompt_token_ids

if TYPE_CHECKING:
    from ..model.model import Model


def prompt_ids(model: Model, prompt: Any, room: int = 1, limit: int | None = None) -> list[int]:
    """Return the token ids of a text, of chat messages (rendered with the model's template), or of ids themselves.

    `room` is the number of tokens of the context that must be left; `limit` the context, where another adapter than the one in
    use will answer.

    Messages that end with one of the assistant's are left open there: the answer goes on with it.
    """
    if isinstance(prompt, str):
        ids = prompt_token_ids(model.tokenizer, prompt)
    elif isinstance(prompt, (Sequence, np.ndarray)) and len(prompt) and all(isinstance(m, dict) for m in prompt):
        ids = message_ids(model, list(prompt))
    elif isinstance(prompt, (Sequence, np.ndarray)) and all(map(_is_id, prompt)):
        ids = [int(i) for i in prompt]
    else:
        raise DataError(f"prompt: expected a text, a list of messages or a list of token ids, got {type(prompt).__name__}")
    vocab, limit = model.decoder.config["vocab_size"], model.context_length if limit is None else limit
    if not ids:
        raise DataError("prompt: expected at least one token, got none")
    wrong = next((i for i in ids if not 0 <= i < vocab), None)
    if wrong is not None:
        raise DataError(f"prompt: expected token ids from 0 to {vocab - 1}, got {wrong}; is the tokenizer this model's?")
    if len(ids) > limit - room and room == 0:
        raise DataError(f"prompt: expected at most the {limit} tokens of the model's context, got {len(ids)}; shorten it")
    if len(ids) > limit - room:
        raise DataError(f"prompt: expected fewer tokens than the model's context of {limit}, got {len(ids)}; shorten it")
    return ids


def need_language_model(model: Model, method: str) -> None:
    """Refuse a classifier where text is to be written or predicted.

    Raises
    ------
    ConfigError
        With the way out.
    """
    if model.labels is not None:
        raise ConfigError(
            f"{method}: expected a language model, got a classifier of {len(model.labels)} labels, which writes no text; use "
            "classify (lora-c classify), or load the base without task_type"
        )


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def message_ids(model: Model, messages: list[Any], tools: Sequence[Any] | None = None) -> list[int]:
    """Return the token ids of chat messages, ready for the answer, of any number; `tools`: what may be called in it."""
    opened = messages[-1].get("role") == "assistant"
    options: dict[str, Any] = {"add_generation_prompt": not opened, "continue_final_message": opened, "tools": tools}
    text = model.tokenizer.apply_chat_template(messages, **options)
    return model.tokenizer.encode(text, add_special_tokens=False)


def is_batch(prompt: Any) -> bool:
    """Whether this is a list of prompts: of texts, of message lists, or of lists of token ids."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence) or not prompt:
        return False
    return all(isinstance(part, (str, Sequence, np.ndarray)) for part in prompt)
