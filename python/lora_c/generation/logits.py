"""What changes the logits before a token is chosen, in the order and with the arithmetic of transformers.

Penalty for repetitions, n-grams that must not come twice, bad words, ends that come too early, forced tokens, suppressed
tokens. All of it holds for the greedy choice, too; temperature and its like are in `sampling`.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..configs import GenerationConfig
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

F32 = NDArray[np.float32]


class LogitsProcessor:
    """Changes the logits of one answer, step by step.

    Parameters
    ----------
    n_prompt, max_tokens : int
        Tokens of the prompt, and the most that the answer may have.
    ends : set of int
        The tokens that end the answer.
    bad_words : list of list of int
        Sequences of tokens that must not be written, see `bad_word_ids`.
    """

    def __init__(
        self, config: GenerationConfig, n_prompt: int, max_tokens: int, ends: Collection[int] = (),
        bad_words: Sequence[Sequence[int]] = (),
    ) -> None:  # fmt: skip
        self._config, self._n_prompt, self._max_tokens = config, n_prompt, max_tokens
        self._ends = _distinct(ends)
        self._bad_words = _by_beginning(bad_words, set(ends))
        self._suppressed, self._suppressed_first = _distinct(config.suppress_tokens), _distinct(config.begin_suppress_tokens)
        forced = config.forced_eos_token_id
        self._last = [] if forced is None else forced if isinstance(forced, list) else [forced]
        self._begin = 1 if n_prompt == 1 and config.forced_bos_token_id is not None else 0
        self.changes_nothing = not (
            config.repetition_penalty != 1.0 or config.no_repeat_ngram_size or self._bad_words or config.min_new_tokens
            or config.forced_bos_token_id is not None or self._last or config.suppress_tokens or config.begin_suppress_tokens
        )  # fmt: skip

    def __call__(self, logits: F32, ids: Sequence[int]) -> F32:
        """Return the changed logits; ids: the prompt and the answer so far.

        Shapes
        ------
        logits (V,), result (V,)
        """
        if self.changes_nothing:
            return logits
        config, n_new = self._config, len(ids) - self._n_prompt
        scores = np.array(logits, np.float32)
        if config.repetition_penalty != 1.0:
            _penalize(scores, ids, np.float32(config.repetition_penalty))
        if config.no_repeat_ngram_size:
            _forbid(scores, _completing(ids, config.no_repeat_ngram_size))
        for n_before, last_of in self._bad_words.items():
            if n_before <= len(ids) and (last := last_of.get(tuple(ids[len(ids) - n_before :]))) is not None:
                _forbid(scores, last)
        if n_new < config.min_new_tokens:
            _forbid(scores, self._ends)
        if config.forced_bos_token_id is not None and len(ids) == 1:
            scores = _only(scores, [config.forced_bos_token_id])
        if self._last and n_new == self._max_tokens - 1:
            scores = _only(scores, self._last)
        _forbid(scores, self._suppressed)
        if n_new == self._begin:
            _forbid(scores, self._suppressed_first)
        return scores


def bad_word_ids(config: GenerationConfig, tokenizer: Tokenizer | None, vocab_size: int) -> list[list[int]]:
    """The token sequences that must not be written: those of the configuration, and of its words with and without a space."""
    found = [list(ids) for ids in config.bad_words_ids]
    for word in filter(None, config.bad_words):
        if tokenizer is None:
            raise ConfigError("bad_words: expected a model with a tokenizer, got one without; give bad_words_ids")
        spellings = (word, word if word[:1].isspace() else f" {word}")
        found += [tokenizer.encode(text, add_special_tokens=False) for text in dict.fromkeys(spellings)]
    wrong = next((i for ids in found for i in ids if not 0 <= i < vocab_size), None)
    if wrong is not None:
        raise ConfigError(f"bad_words_ids: expected token ids from 0 to {vocab_size - 1}, got {wrong}")
    return [list(ids) for ids in dict.fromkeys(tuple(ids) for ids in found if ids)]


def check_token_ids(config: GenerationConfig, vocab_size: int) -> None:
    """Refuse ids that are no token's before the first one is written: they would do nothing, or stop an answer at its end.

    Raises
    ------
    ConfigError
        Naming the option and the id.
    """
    forced = config.forced_eos_token_id
    named = {
        "suppress_tokens": config.suppress_tokens,
        "begin_suppress_tokens": config.begin_suppress_tokens,
        "forced_bos_token_id": [] if config.forced_bos_token_id is None else [config.forced_bos_token_id],
        "forced_eos_token_id": forced if isinstance(forced, list) else [] if forced is None else [forced],
    }
    for option, ids in named.items():
        wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
        if wrong is not None:
            raise ConfigError(f"{option}: expected token ids from 0 to {vocab_size - 1}, got {wrong}")


def _penalize(scores: F32, ids: Sequence[int], penalty: np.float32) -> None:
    """Make the tokens of the text so far less likely, or more: scores divided by the penalty, negative ones multiplied.

    Source
    ------
    CTRL, arXiv:1909.05858
    """
    seen = np.unique(np.asarray(ids, np.int64))
    own = scores[seen]
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # what overflows is refused afterwards
        scores[seen] = np.where(own < 0, own * penalty, own / penalty)


def _completing(ids: Sequence[int], size: int) -> NDArray[np.int64]:
    """The tokens with which the sequence would get an n-gram that it has already."""
    if len(ids) < size:
        return np.empty(0, np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(ids, np.int64), size)
    tail = np.asarray(ids[len(ids) - size + 1 :], np.int64)
    return np.array(windows[(windows[:, :-1] == tail).all(axis=1), -1])


def _distinct(tokens: Iterable[int]) -> NDArray[np.int64]:
    """Tokens as one array, made once for an answer: there may be many. No vocabulary has tokens beyond 32 bits."""
    return np.array(sorted({i for i in tokens if 0 <= i < 2**32}), np.int64)


def _by_beginning(words: Iterable[Sequence[int]], ends: Container[int]) -> dict[int, dict[tuple[int, ...], NDArray[np.int64]]]:
    """The last tokens of words by the ones before them, and those by their number; an end by itself is no word."""
    found: dict[int, dict[tuple[int, ...], list[int]]] = {}
    for word in words:
        if len(word) != 1 or word[0] not in ends:
            found.setdefault(len(word) - 1, {}).setdefault(tuple(word[:-1]), []).append(word[-1])
    return {n: {before: _distinct(last) for before, last in of.items()} for n, of in found.items()}


def _forbid(scores: F32, tokens: NDArray[np.int64]) -> None:
    scores[tokens[tokens < scores.size]] = -np.inf


def _only(scores: F32, tokens: Sequence[int]) -> F32:
    forced = np.full_like(scores, -np.inf)
    forced[list(tokens)] = 0
    return forced
