"""One prompt of a batch and what has been written after it so far; and who writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ..configs import GenerationConfig
from ..errors import LoraCError
from .answer_text import TextPieces
from .choosing import TokenChooser, precision_of
from .token_logprobs import TokenLogprob, token_logprob

if TYPE_CHECKING:
    from ..model.model import Model


class Answer:
    """What `Batch.add` returns: it fills with every `Batch.step`.

    Attributes
    ----------
    prompt : list of int
        The token ids of the prompt.
    ids : list of int
        The new token ids so far, without an end token.
    text : str
        Their text so far, up to a stop text; empty where the model has no tokenizer.
    adapter : str or None
        The adapter that it is written with; None: the bare base.
    finished : bool
        Whether nothing more will come.
    error : LoraCError or None
        Why it ended before its time.
    finish_reason : "stop", "length" or None
        Why it ended: by an end token or a stop text, or because no more tokens were allowed; None while it is under way, where
        it was removed, and where it failed.
    logprobs : list of TokenLogprob or None
        Of every token, where they were asked for.
    n_reused : int
        Tokens of the prompt that were not read because another sequence had them.
    """

    def __init__(self, prompt: Sequence[int], adapter: str | None) -> None:
        self.prompt, self.adapter = list(prompt), adapter
        self.ids: list[int] = []
        self.text = ""
        self.finished = False
        self.error: LoraCError | None = None
        self.finish_reason: Literal["stop", "length"] | None = None
        self.logprobs: list[TokenLogprob] | None = None
        self.n_reused = 0
        self._taken = 0

    def take(self) -> str:
        """Return the text that came since the last call; the pieces joined are the answer."""
        piece, self._taken = self.text[self._taken :], len(self.text)
        return piece

    def __repr__(self) -> str:
        state = f"failed: {self.error}" if self.error else "finished" if self.finished else "under way"
        return f"Answer({len(self.prompt)} tokens + {len(self.ids)}, adapter={self.adapter!r}, {state})"


class Writer:
    """Writes an answer, token by token, and knows what it is written with."""

    def __init__(
        self, model: Model, answer: Answer, config: GenerationConfig, repetition: int = 0, top_logprobs: int | None = None,
        skip_special_tokens: bool = True,
    ) -> None:  # fmt: skip
        self.answer, self.precision = answer, precision_of(config)
        self.weights = weights_of(model, answer.adapter)
        self._chooser = TokenChooser(model, answer.prompt, config, repetition, answer.adapter)
        self.n_virtual = model.context_with(None) - model.context_with(answer.adapter)
        self._pieces = None
        if model.has_tokenizer:
            self._pieces = TextPieces(model.tokenizer, answer.prompt, config, skip_special_tokens)
        self._n_top = top_logprobs
        answer.logprobs = None if top_logprobs is None else []

    @property
    def n_tokens(self) -> int:
        """The tokens of the prompt and of the answer so far."""
        return len(self.answer.prompt) + len(self.answer.ids)

    @property
    def most_tokens(self) -> int:
        """The tokens that prompt and answer can have together."""
        return self.n_tokens + self._chooser.budget

    @property
    def most_rows(self) -> int:
        """What they take of a cache, where virtual tokens of the adapter stand before them."""
        return self.n_virtual + self.most_tokens

    def advance(self, logits: NDArray[np.float32]) -> None:
        """Choose the next token. What breaks that off leaves the answer where nobody knows, and ends it with an error."""
        try:
            self._advance(logits)
        except LoraCError as error:
            self.end(error)
        except BaseException as error:
            self.end(LoraCError(f"answer: expected its token to be chosen, got {type(error).__name__}; add the prompt again"))
            raise

    def _advance(self, logits: NDArray[np.float32]) -> None:
        answer = self.answer
        token = self._chooser.choose(logits)
        if token is None:
            self._finish("stop")
            return
        answer.ids.append(token)
        if answer.logprobs is not None:
            answer.logprobs.append(token_logprob(logits, token, self._n_top or 0))
        if self._pieces is not None:
            answer.text += self._pieces.push(token)
        if self._pieces is not None and self._pieces.stopped:
            self._finish("stop")
        elif self._chooser.budget <= 0:
            self._finish("length")

    def _finish(self, reason: Literal["stop", "length"]) -> None:
        self.answer.finish_reason = reason
        self.end()

    def end(self, error: LoraCError | None = None) -> None:
        """Write no more."""
        answer = self.answer
        if answer.finished:
            return
        answer.finished, answer.error = True, error
        if self._pieces is not None:
            answer.text += self._pieces.flush()


def weights_of(model: Model, adapter: str | None) -> tuple[object, ...]:
    """What tells that keys and values in a cache were made with other weights: the adapter, what is merged, the decoder."""
    known = adapter in model.adapter_set if adapter is not None else False
    return (model.adapter_set[adapter] if known and adapter is not None else adapter), model.merged, model.decoder
