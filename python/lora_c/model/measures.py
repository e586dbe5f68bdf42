"""What a model makes of a text, without writing any: loss, log-probabilities, logits, hidden states, embeddings.

Methods of `Model`. A text, messages or token ids are read as `generate` reads them; `loss` reads messages as training does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..data.batching import token_groups
from ..errors import ConfigError, DataError
from ..text.prompts import is_batch, need_language_model, prompt_ids

if TYPE_CHECKING:
    from ..data import Sample
    from .model import Model

F32 = NDArray[np.float32]
_PASS_TOKENS = 2048  # of several texts in one pass


def loss(model: Model, text: Any) -> float:
    """Return the mean cross entropy per token, in nats.

    Parameters
    ----------
    text : str, list of dict, or list of int
        A text or token ids: of every token but the first. Chat messages: of the assistant's tokens, as in training.

    Returns
    -------
    float
        The mean over the tokens that are predicted.

    Raises
    ------
    DataError
        Nothing in it is predicted, or it is longer than the model's context.
    """
    from ..data.batching import pack

    need_language_model(model, "loss")
    batch = pack(_samples(model, text))
    total = batch.total_weight
    if total == 0.0:
        raise DataError("text: expected two tokens or more, or messages with an answer, got nothing that is predicted")
    return model.decoder.loss(batch.input_ids, batch.cu_seqlens, batch.targets, batch.loss_weight) / total


def log_probs(model: Model, text: Any) -> F32:
    """Return the log-probability of every token after the first, given those before it.

    Parameters
    ----------
    text : str, list of dict, or list of int
        A text, chat messages, or token ids.

    Returns
    -------
    ndarray
        float32 (n - 1,) for n tokens, in nats; entry i is of token i + 1.
    """
    need_language_model(model, "log_probs")
    ids = _ids(model, text)
    targets = np.append(ids[1:], np.int32(0)).astype(np.int32)
    weight = np.ones(len(ids), np.float32)
    weight[-1] = 0.0
    losses = np.zeros(len(ids), np.float32)
    model.decoder.loss(ids, np.array([0, len(ids)], np.int32), targets, weight, token_loss=losses)
    return -losses[:-1]


def logits(model: Model, text: Any) -> F32:
    """Return the logits after every token.

    Parameters
    ----------
    text : str, list of dict, or list of int
        A text, chat messages, or token ids.

    Returns
    -------
    ndarray
        float32 (n, vocab_size) for n tokens; the last row is of the token that would come next. Of a classifier
        (n, num_labels); the last row is what it says of the text.
    """
    return model.decoder.logits(_ids(model, text))


def hidden_states(model: Model, text: Any, layer: int = -1) -> F32:
    """Return the hidden states at one depth, as transformers counts them.

    Parameters
    ----------
    text : str, list of dict, or list of int
        A text, chat messages, or token ids.
    layer : int
        0: the embeddings; i: after i layers; -1: after the last one and the final norm.

    Returns
    -------
    ndarray
        float32 (n, hidden_size) for n tokens.
    """
    return model.decoder.hidden_states(_ids(model, text), _depth(model, layer))


def embed(
    model: Model, texts: Any, layer: int = -1, pooling: Literal["mean", "last"] = "mean", normalize: bool = False
) -> F32:
    """Return one vector for each text, of its hidden states.

    Parameters
    ----------
    texts : str or list of str
        Or messages, or token ids, or a list of these.
    layer : int
        As in `hidden_states`.
    pooling : "mean" or "last"
        The mean over the tokens, or the last token.
    normalize : bool
        Divide by the length, so that a product of two is their cosine.

    Returns
    -------
    ndarray
        float32 (hidden_size,) for one text, (len(texts), hidden_size) for a list.
    """
    if pooling not in ("mean", "last"):
        raise ConfigError(f"pooling: expected 'mean' or 'last', got {pooling!r}")
    depth = _depth(model, layer)
    several = is_batch(texts)
    all_ids = [_ids(model, text) for text in (texts if several else [texts])]
    rows = []
    for group in token_groups(all_ids, _PASS_TOKENS):
        ends = np.cumsum([len(ids) for ids in group])
        cu = np.concatenate([[0], ends]).astype(np.int32)
        states = model.decoder.hidden_states(np.concatenate(group), depth, cu)
        for states_of_one in np.split(states, ends[:-1]):
            rows.append(states_of_one[-1] if pooling == "last" else states_of_one.mean(axis=0, dtype=np.float64))
    vectors = np.asarray(rows, np.float32)
    if normalize:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return vectors if several else vectors[0]


def _ids(model: Model, text: Any) -> NDArray[np.int32]:
    return np.asarray(prompt_ids(model, text, room=0), np.int32)


def _samples(model: Model, text: Any) -> list[Sample]:
    from ..data import Sample, samples_from_record

    if isinstance(text, Sequence) and not isinstance(text, str) and text and all(isinstance(m, dict) for m in text):
        samples = samples_from_record({"messages": list(text)}, model.tokenizer, "messages")
        longest = max(len(sample) for sample in samples)
        if longest > model.context_length:
            raise DataError(
                f"messages: expected at most {model.context_length} tokens (the context), got {longest}; shorten them"
            )
        return samples
    ids = _ids(model, text)
    return [Sample(ids, np.ones(len(ids), np.float32))]


def _depth(model: Model, layer: int) -> int:
    last = int(model.decoder.config["num_hidden_layers"])
    if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)) or not -last - 1 <= layer <= last:
        raise ConfigError(
            f"layer: expected a whole number from 0 (the embeddings) to {last} (the last layer), or -1, got {layer!r}"
        )
    return int(layer) if layer >= 0 else last + 1 + int(layer)
