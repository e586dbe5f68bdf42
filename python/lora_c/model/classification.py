"""What a classifier says of texts. The method `classify` of `Model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.batching import pack, token_groups
from ..data.labelled import texts_of
from ..data.samples import Sample
from ..errors import ConfigError, DataError
from ..families.labels import Labels
from ..text.sequences import sequence_ids

if TYPE_CHECKING:
    from .model import Model

_PASS_TOKENS = 2048  # of several texts in one pass
_HOLDS = 0.5  # from this probability on a text has a label, where it can have several


@dataclass(frozen=True)
class Classification:
    """What a classifier says of one text.

    Attributes
    ----------
    label : str
        The most probable label; with regression the name of the largest number.
    score : float
        Its probability; with regression the number itself.
    scores : dict
        The same of every label, by name.
    labels : tuple of str
        All that hold: `label` alone, or with multi_label_classification those with a probability of a half or more.
    """

    label: str
    score: float
    scores: dict[str, float]
    labels: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the same for JSON."""
        return {"label": self.label, "score": self.score, "labels": list(self.labels), "scores": self.scores}


def labels(model: Model) -> Labels | None:
    """The labels of a classifier and what it is asked; None for a language model."""
    return model.architecture.labels


def classify(model: Model, texts: Any, max_seq_length: int | None = None) -> Any:
    """Return what a classifier says of a text, or a list for a list of texts.

    Parameters
    ----------
    texts : str, tuple of two str, or mapping; or a list of these
        A text; two texts, as they were trained together; or both by name, ``{"text": …, "text_pair": …}``.
    max_seq_length : int, optional
        Longer texts are cut as in training; by default to the model's context.

    Returns
    -------
    Classification or list of Classification
        A list for a list.

    Raises
    ------
    ConfigError
        The model writes text.
    DataError
        A text cannot be read.
    """
    if model.labels is None:
        raise ConfigError(
            "classify: expected a classifier, got a language model; load it with task_type='SEQ_CLS', or generate"
        )
    length = model.context_length if max_seq_length is None else max_seq_length
    if type(length) is not int or length < 1:
        raise ConfigError(f"max_seq_length: expected 1 or more, got {str(length)[:60]!r}")
    several = isinstance(texts, Sequence) and not isinstance(texts, (str, tuple))
    samples = [_sample(model, text, min(length, model.context_length)) for text in (texts if several else [texts])]
    found: list[Classification] = []
    for group in token_groups(samples, _PASS_TOKENS):
        batch = pack(group)
        logits = model.decoder.last_logits(batch.input_ids, batch.cu_seqlens)
        found += [_said(row, model.labels) for row in logits.astype(np.float64)]
    return found if several else found[0]


def probabilities(logits: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    """The probability of each label from a row of logits; with regression the numbers as they are."""
    if labels.problem_type == "regression":
        return logits
    if labels.problem_type == "multi_label_classification":
        small = np.exp(-np.abs(logits))
        return np.asarray(np.where(logits >= 0, 1.0, small) / (1 + small))
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def _said(logits: NDArray[np.float64], labels: Labels) -> Classification:
    scores = dict(zip(labels.names, map(float, probabilities(logits, labels)), strict=True))
    best = labels.names[int(np.argmax(logits))]
    holding = tuple(name for name in labels.names if scores[name] >= _HOLDS)
    several = labels.problem_type == "multi_label_classification"
    return Classification(best, scores[best], scores, holding if several else (best,))


def _sample(model: Model, given: Any, length: int) -> Sample:
    if isinstance(given, str):
        given = {"text": given}
    elif isinstance(given, tuple) and len(given) == 2:
        given = {"text": given[0], "text_pair": given[1]}
    if not isinstance(given, Mapping):
        raise DataError(
            f"texts: expected a text, a tuple of two, or {{'text': …, 'text_pair': …}}, got a {type(given).__name__}; a list "
            "is one of texts"
        )
    try:
        text, pair = texts_of(given)
        ids, _ = sequence_ids(model.tokenizer, text, pair, length)
    except DataError as error:
        raise DataError(f"texts: {error}") from None
    array = np.asarray(ids, np.int32)
    vocab = model.architecture.decoder_kwargs["vocab_size"]
    if int(array.max()) >= vocab:
        raise DataError(f"texts: expected token ids below {vocab:,}, got {int(array.max()):,}; is the tokenizer this model's?")
    return Sample(array, np.zeros(len(ids), np.float32), label=0)
