"""What was said so far, what of it the context still holds, and the next answer. Knows nothing of terminals."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..configs import GenerationConfig
from ..errors import DataError
from ..text.prompts import message_ids, need_language_model

if TYPE_CHECKING:
    from ..model.model import Model

_SEEDS = 2**63


@dataclass(frozen=True)
class Turn:
    """A question and its whole answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Reply:
    """An answer that begins.

    Attributes
    ----------
    forgotten : int
        The oldest turns that the context had no room for.
    pieces : iterator of str
        The answer. The turn is part of the conversation when all of it was read, and not before.
    """

    forgotten: int
    pieces: Iterator[str]


class Conversation:
    """Turns with a model behind a system message.

    Parameters
    ----------
    model : Model
        With a chat template.
    config : GenerationConfig
        How answers are written. With a seed each answer has the next one after it; without, each draws anew.
    system : str, optional
        The system message. It stays when turns are forgotten.
    """

    def __init__(self, model: Model, config: GenerationConfig, system: str | None = None) -> None:
        need_language_model(model, "chat")
        if model.tokenizer.chat_template is None:
            raise DataError("model: expected a chat template for chat, got none; use lora-c generate with this model")
        self.model, self.config, self.system = model, config, system
        self.turns: list[Turn] = []
        self._cut: str | None = None  # the last question, where its answer was cut
        self._begun = 0

    def messages(self) -> list[dict[str, str]]:
        """The conversation as training data has it."""
        return self._messages(self.turns)

    def ask(self, question: str) -> Reply:
        """Begin the answer to a message of the user's.

        Raises
        ------
        DataError
            The message alone is longer than the context, or the template refuses the conversation. Nothing has changed.
        """
        return self._begin(self.turns, question)

    def ask_again(self) -> Reply:
        """Begin another answer to the last question, in place of the one that it has.

        Raises
        ------
        DataError
            Nothing was asked yet.
        """
        if self._cut is not None:
            return self._begin(self.turns, self._cut)
        if not self.turns:
            raise DataError("/retry: expected a question before it, got none; write a message first")
        return self._begin(self.turns[:-1], self.turns[-1].question)

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns, self._cut = [], None

    def _begin(self, before: Sequence[Turn], question: str) -> Reply:
        kept, ids = self._fitting(before, question)
        is_new = len(before) == len(self.turns)  # else the last turn is there until its new answer is whole
        return Reply(len(before) - len(kept), self._answer(kept, question, ids, is_new))

    def _answer(self, kept: list[Turn], question: str, ids: list[int], is_new: bool) -> Iterator[str]:
        self._cut = question if is_new else None
        answer = ""
        config = self._next_config()
        for piece in self.model.stream(ids, config):
            answer += piece
            yield piece
        self.turns, self._cut = [*kept, Turn(question, answer)], None

    def _next_config(self) -> GenerationConfig:
        """The settings with a seed of this answer's own, where tokens are drawn."""
        if not self.config.sampling:
            return self.config
        given = self.config.seed if "seed" in self.config.model_fields_set else None
        seed = secrets.randbelow(_SEEDS) if given is None else (given + self._begun) % _SEEDS
        self._begun += 1
        return GenerationConfig(**(self.config.model_dump(exclude_unset=True) | {"seed": seed}))

    def _fitting(self, turns: Sequence[Turn], question: str) -> tuple[list[Turn], list[int]]:
        """The turns that stay and the ids of the prompt: the oldest go until an answer has room, too."""
        limit = self.model.context_length
        room = min(self.config.max_new_tokens, limit // 4)
        for first in range(len(turns) + 1):
            ids = message_ids(self.model, [*self._messages(turns[first:]), {"role": "user", "content": question}])
            if len(ids) + room <= limit:
                break
        if len(ids) >= limit:
            raise DataError(
                f"message: expected fewer tokens than the model's context of {limit}, got {len(ids)} with the system message "
                "and the template; shorten it"
            )
        return list(turns[first:]), ids

    def _messages(self, turns: Sequence[Turn]) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in turns:
            messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
        return messages
