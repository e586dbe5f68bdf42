"""More rows in the embedding and the head, for tokens that a tokenizer has and a model has not.

A new row is the mean of the old ones, as in transformers: an unknown token is then as likely as the others on average.
Source: https://nlp.stanford.edu/~johnhew/vocab-expansion.html
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core import Parameter
from ..adapters.data import all_specs
from ..adapters.formats import find_folder
from ..adapters.peft_format import PREFIX
from ..adapters.targets import find_targets
from ..checkpoints.safetensors_file import SafetensorsFile
from ..checkpoints.written import ADAPTER_CONFIG, ADAPTER_FILE
from ..configs import LoraConfig
from ..errors import AdapterError, CheckpointError, ConfigError
from ..files.json_files import read_json_object
from ..gguf.reader import is_gguf
from ..notices import tell
from ..weights.parameter_values import set_values

_MOST_GAPS, _FEW = 4, 1024
# Tensors of an adapter that have a side as long as the vocabulary, and which one it is.
_SIDE_OF_ROWS = {"weight": 0, "lora_embedding_A": 1, "lora_B.weight": 0}

if TYPE_CHECKING:
    from ..families.architectures import Architecture
    from ..text.tokenizer import Tokenizer
    from .model import Model


def rows_for(tokenizer: Tokenizer) -> int:
    """Return the rows that an embedding needs for every token.

    Raises
    ------
    ConfigError
        A token's id is so large that most rows would be of no token.
    """
    ids = tokenizer.backend.get_vocab(with_added_tokens=True).values()
    rows = 1 + max(ids, default=-1)
    if rows > _MOST_GAPS * max(len(ids), _FEW):
        raise ConfigError(
            f"resize_embedding: expected the {len(ids):,} tokens of the tokenizer to be numbered one after another, got an id "
            f"of {rows - 1:,}; correct it in tokenizer.json"
        )
    return rows


def resize_embedding(model: Model, vocab_size: int) -> None:
    """Give the embedding and the head rows for more tokens; a new one is the mean of the old ones.

    Parameters
    ----------
    vocab_size : int
        The rows that they have then.

    Raises
    ------
    ConfigError
        There are fewer tokens than rows, or the rows are quantized.
    AdapterError
        The model has an adapter already.
    """
    before = int(model.architecture.decoder_kwargs["vocab_size"])
    if vocab_size == before:
        return
    if vocab_size < before:
        raise ConfigError(f"resize_embedding: expected at least the {before:,} rows that the model has, got {vocab_size:,}")
    if model.adapter_names or model.is_merged:
        raise AdapterError("resize_embedding: expected a model without adapters, got one; resize it before they are added")
    weights = _with_more_rows(model.weights, vocab_size)
    config = model.config | {"vocab_size": vocab_size}
    resized = model.with_weights(weights, model.stored_dtypes, model.quant_records, config)
    resized.requantization_error = model.requantization_error
    resized.added_tokens = [*model.added_tokens, *range(before, vocab_size)]
    vars(model).update(vars(resized))


def _with_more_rows(weights: Mapping[str, Any], n_rows: int) -> dict[str, Any]:
    """The weights with embedding and head of so many rows."""
    names = {"embed_tokens", "lm_head"} & set(weights)
    trained = {name: weight for name, weight in weights.items() if isinstance(weight, Parameter)}
    longer = {name: _longer(name, weights[name], n_rows) for name in names - set(trained)}
    return {**weights, **longer, **(_longer_block(trained, names, n_rows) if names & set(trained) else {})}


def _longer(name: str, weight: Any, n_rows: int) -> NDArray[Any]:
    if not isinstance(weight, np.ndarray):
        raise ConfigError(
            f"resize_embedding: expected {name} as a plain array, got {type(weight).__name__}, whose rows are quantized; load "
            "the folder that the model was made from"
        )
    return _with_mean_rows(weight, n_rows)


def _longer_block(trained: dict[str, Parameter], names: set[str], n_rows: int) -> dict[str, Parameter]:
    """New Parameters for all that are trained, which lie in one block of memory.

    The old block lives until the new one is filled: for that long it takes the memory that the moments of AdamW take later.
    """
    shapes = [(n_rows, *old.shape[1:]) if name in names else old.shape for name, old in trained.items()]
    grad = all(old.requires_grad for old in trained.values())
    names_in_files, device = [old.name for old in trained.values()], next(iter(trained.values())).device
    made = Parameter.block(shapes, names=names_in_files, requires_grad=grad, device=device)
    for (name, old), new in zip(trained.items(), made, strict=True):
        set_values(new, _with_mean_rows(old.data, n_rows) if name in names else old.data)
    return dict(zip(trained, made, strict=True))


def _with_mean_rows(weight: NDArray[Any], n_rows: int) -> NDArray[Any]:
    mean = weight.mean(axis=0, dtype=np.float64).astype(weight.dtype)
    return np.concatenate([weight, np.broadcast_to(mean, (n_rows - len(weight), weight.shape[1]))])


def train_added_tokens(config: LoraConfig, model: Model) -> LoraConfig:
    """Return the configuration of an adapter that also trains the rows that were added to the embedding."""
    trained = _trained_globals(config, model) if model.added_tokens else {"embedding"}
    if "head" in trained and "embedding" not in trained:
        tell(
            "resize_embedding: the head is trained, the new rows of the embedding stay the mean of the old ones, so that the "
            "new tokens are written and hardly read; --modules-to-save embed_tokens,lm_head trains both whole"
        )
    if trained:
        return config
    given = config.trainable_token_indices or []
    named = isinstance(given, dict)
    ids: Iterable[int] = next(iter(given.values()), []) if isinstance(given, dict) else given
    together: Any = sorted({*ids, *model.added_tokens})
    if named and given:
        together = dict.fromkeys(given, together)
    if not model.architecture.tied:
        tell(
            "resize_embedding: the new rows of the embedding are trained, those of the head stay the mean of the old ones, so "
            "that the new tokens are read and hardly written; --modules-to-save embed_tokens,lm_head trains both whole"
        )
    return config.model_copy(update={"trainable_token_indices": together})


def _trained_globals(config: LoraConfig, model: Model) -> set[str]:
    """Which of "embedding" and "head" are trained already, whole or by an update of their own."""
    saved = {name.rpartition(".")[2] for name in config.modules_to_save or []}
    specs = [spec for spec in all_specs(model.architecture) if spec.module.rpartition(".")[2] in saved]
    specs += [target.spec for target in find_targets(config, model.architecture)]
    return {str(spec.kind) for spec in specs} & {"embedding", "head"}


def resize_for_adapter(model: Model, path: str | os.PathLike[str]) -> None:
    """Resize a model where an adapter was trained with tokens that the model's tokenizer has and its embedding has not.

    Raises
    ------
    AdapterError
        The adapter has rows for tokens that the tokenizer has not, either.
    """
    before = int(model.architecture.decoder_kwargs["vocab_size"])
    try:
        needed = rows_of_adapter(model.architecture, path)
    except CheckpointError:  # whoever reads the adapter says what is wrong with it
        return
    if needed <= before:
        return
    known = rows_for(model.tokenizer) if model.has_tokenizer else before
    if needed > known:
        raise AdapterError(
            f"{os.fspath(path)}: expected rows for at most {max(before, known):,} tokens (of the model and its tokenizer), "
            f"got {needed:,}; load the adapter on a model folder with the tokenizer that it was trained with"
        )
    resize_embedding(model, needed)
    tell(f"{os.fspath(path)}: the embedding got {needed - before:,} rows more, for tokens that the adapter was trained with")


def rows_of_adapter(architecture: Architecture, path: str | os.PathLike[str]) -> int:
    """Return how many rows an embedding needs for an adapter; 0 where it says nothing of that."""
    if is_gguf(path):
        return 0
    folder = find_folder(path)
    if not (folder / ADAPTER_CONFIG).is_file() or not (folder / ADAPTER_FILE).is_file():
        return 0
    given = read_json_object(folder / ADAPTER_CONFIG).get("trainable_token_indices") or []
    lists = given.values() if isinstance(given, dict) else [given]
    ids = [i for ids in lists if isinstance(ids, list) for i in ids if type(i) is int]
    rows = [1 + max(ids, default=-1)]
    file = SafetensorsFile(folder / ADAPTER_FILE)
    for spec in all_specs(architecture):
        if spec.kind not in ("embedding", "head"):
            continue
        for name, axis in _SIDE_OF_ROWS.items():
            info = file.tensors.get(f"{PREFIX}{spec.module}.{name}")
            if info is not None and len(info.shape) == 2:
                rows.append(info.shape[axis])
    file.close()
    return max(rows)
