"""The tokens that end an answer: one set per model, whoever names them.

Four sources name ends, and generation stops at the union of what they say:

* config.json, its `eos_token_id` (of a model of texts and images in text_config, too);
* generation_config.json, its `eos_token_id`: what other programs stop at, where it says something;
* the tokenizer's eos_token, which training appends to texts and completions;
* the token with which the chat template closes an assistant's message, which training teaches with conversations. It is found
  by rendering one.

Where training would teach an end that the files do not name, one line says so when the model is loaded. Every file that is
written names the whole set, so that it stays one through folders, GGUF files and merges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import Parameter
from ..errors import CheckpointError, DataError, shorten
from ..notices import tell
from ..weights.kinds import dense_rows
from .special_tokens import is_marked

if TYPE_CHECKING:
    from ..data import Dataset
    from ..model.model import Model
    from .tokenizer import Tokenizer

_SYSTEM, _QUESTION, _ANSWER = "System", "Question", "Answer"
_TINY = 1e-2  # of the usual length of an embedding's row; a trained one is never that short
_CHUNK = 1 << 22  # values that are looked at together


@dataclass(frozen=True)
class Ends:
    """What each source says: a name for messages, and ids."""

    sources: dict[str, tuple[int, ...]]

    @property
    def ids(self) -> frozenset[int]:
        """The union."""
        return frozenset(i for ids in self.sources.values() for i in ids)

    def disagreement(self, tokenizer: Tokenizer | None) -> str | None:
        """One line where the file that other programs heed lacks an end; None where it names them all."""
        first = next((name for name in (_GENERATION, _CONFIG) if self.sources.get(name)), None)
        if first is None or self.ids <= set(self.sources[first]):
            return None

        def show(i: int) -> str:
            text = tokenizer.id_to_token(i) if tokenizer is not None else None
            return f"{i} ({text})" if text is not None else str(i)

        parts = [f"{name} {', '.join(map(show, ids))}" for name, ids in self.sources.items() if ids]
        return f"the ends of an answer differ: {'; '.join(parts)}; an answer ends at each of them"


_CONFIG, _GENERATION, _EOS, _TEMPLATE = (
    "config.json",
    "generation_config.json",
    "the tokenizer's eos_token",
    "the chat template",
)


def find_ends(config: Mapping[str, Any], generation: Mapping[str, Any], tokenizer: Tokenizer | None) -> Ends:
    """Ask every source.

    Parameters
    ----------
    config, generation : dict
        config.json and generation_config.json (empty where there is none).

    Raises
    ------
    CheckpointError
        An `eos_token_id` is no token id.
    """
    inner = config.get("text_config")
    named = [*_ids(config.get("eos_token_id"), _CONFIG)]
    named += _ids(inner.get("eos_token_id"), _CONFIG) if isinstance(inner, dict) else ()
    sources = {_CONFIG: tuple(dict.fromkeys(named)), _GENERATION: _ids(generation.get("eos_token_id"), _GENERATION)}
    if tokenizer is not None:
        closing = turn_end(tokenizer)
        sources[_EOS] = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        sources[_TEMPLATE] = () if closing is None else (closing,)
    return Ends(sources)


def turn_end(tokenizer: Tokenizer, tools: list[Any] | None = None) -> int | None:
    """The token with which the chat template closes an assistant's message; None where it closes with none."""
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    for messages in (turns, [{"role": "system", "content": _SYSTEM}, *turns]):  # some templates want a system message
        try:
            _, found, rest = tokenizer.apply_chat_template(messages, tools=tools).rpartition(_ANSWER)
            ids = tokenizer.encode(rest.lstrip(), add_special_tokens=False) if found and rest.strip() else []
        except (DataError, MemoryError):  # a template that wants other messages, or too much, says nothing of its ends
            continue
        return next((i for i in ids if is_marked(tokenizer.backend, i)), None)
    return None


def _ids(value: Any, where: str) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    wrong = [i for i in values if type(i) is not int]
    if wrong:
        raise CheckpointError(f"{where}: eos_token_id: expected a token id or a list of them, got {str(wrong[0])[:40]!r}")
    return tuple(i for i in values if i >= 0)


def with_ends(options: Mapping[str, Any], ends: Iterable[int]) -> dict[str, Any]:
    """A config.json or generation_config.json that names these ends; as it is where it does already."""
    ids = sorted(set(ends))
    if not ids or set(_ids(options.get("eos_token_id"), "eos_token_id")) == set(ids):
        return dict(options)
    return {**options, "eos_token_id": ids if len(ids) > 1 else ids[0]}


# -- ends that nothing has trained ------------------------------------------------------------------------------------


def untrained_ends(model: Model) -> list[int]:
    """The ends whose row of the embedding, or of a head of its own, looks as if no training had ever touched it.

    Such a row is zero, far shorter than the others, or equal to another token's. Base models have them for the tokens of chat
    templates: with the row frozen, an adapter can hardly learn to write such an end, or to see it.
    """
    names = ["embed_tokens"] + ([] if model.architecture.tied else ["lm_head"])
    ends = sorted(i for i in model.eos_token_ids if i < model.decoder.config["vocab_size"])
    found: set[int] = set()
    for name in names if ends else ():
        found |= _untrained_rows(model.weights[name], ends)
    return sorted(found)


def _untrained_rows(matrix: Any, rows: list[int]) -> set[int]:
    """matrix: a weight of the model as it is kept, (n_tokens, hidden_size); of some thousand rows at a time."""
    n_tokens, hidden_size = matrix.shape
    step = max(1, _CHUNK // hidden_size)
    own = np.concatenate([dense_rows(matrix, slice(row, row + 1)) for row in rows])
    lengths, equal = np.empty(n_tokens, np.float32), np.zeros(len(rows), np.int64)
    for begin in range(0, n_tokens, step):
        part = dense_rows(matrix, slice(begin, begin + step))
        lengths[begin : begin + step] = np.sqrt(np.einsum("ij,ij->i", part, part))
        for i, row in enumerate(own):
            alike = np.flatnonzero(part[:, 0] == row[0])
            equal[i] += int((part[alike] == row).all(axis=1).sum())
    usual = float(np.median(lengths))
    return {row for i, row in enumerate(rows) if lengths[row] <= _TINY * usual or equal[i] > 1}


def tell_untrained_ends(model: Model, dataset: Dataset) -> None:
    """Say which ends the data teaches though nothing can train their rows, and the way out."""
    frozen = [i for i in sorted(model.eos_token_ids) if not _is_trained(model, i)]
    samples = [dataset[i] for i in range(len(dataset))] if frozen else []
    taught = [i for i in frozen if any(((s.input_ids == i) & (s.loss_mask > 0)).any() for s in samples)]
    never = [i for i in untrained_ends(model) if i in taught] if taught else []
    if never:
        texts = [f"{model.tokenizer.id_to_token(i)} ({i})" if model.has_tokenizer else str(i) for i in never]
        head = [] if model.architecture.tied else ["lm_head"]
        flags = f"--trainable-token-indices {','.join(map(str, never))}" + (" --modules-to-save lm_head" if head else "")
        names = f"trainable_token_indices={never}" + (f", modules_to_save={head}" if head else "")
        tell(
            f"the data teaches the model to end with {shorten(texts)}, whose row of the embedding was never trained (it is "
            f"zero, tiny or another token's) and stays frozen: answers may not end; train it with {flags} ({names})"
        )


def tell_missing_ends(model: Model, dataset: Dataset) -> None:
    """Say that no answer of the data ends as the model's answers do: it would be trained never to stop.

    Samples that are learned from their first text on are texts, which need no end.
    """
    samples = (dataset[i] for i in range(len(dataset)))
    answers = (s for s in samples if not s.loss_mask[1:2].all())
    first = next(answers, None) if model.eos_token_ids else None
    if first is None:
        return
    ends = np.asarray(sorted(model.eos_token_ids))
    if not any((s.loss_mask[np.isin(s.input_ids, ends)] > 0).any() for s in chain([first], answers)):
        texts = [f"{model.tokenizer.id_to_token(i)} ({i})" if model.has_tokenizer else str(i) for i in ends.tolist()]
        tell(
            f"no answer of the data teaches an end of the model ({shorten(texts)}), so that answers may not stop: are all "
            "cut by max_seq_length, or does the chat template write no end, or not inside of {% generation %}?"
        )


def _is_trained(model: Model, token: int) -> bool:
    adapter = model.adapter
    if adapter is None:
        return any(isinstance(model.weights.get(name), Parameter) for name in ("embed_tokens", "lm_head"))
    rows = adapter.tokens.ids if adapter.tokens is not None else []
    return token in rows or bool({"embed_tokens", "lm_head"} & {*adapter.saved, *adapter.layers})
