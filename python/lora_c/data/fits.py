"""Whether samples fit a model: their ids are rows of its embedding, and their lengths within its context."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..notices import tell
from .samples import Sample

if TYPE_CHECKING:
    from ..families.labels import Labels
    from ..model.model import Model
    from .dataset import Dataset


def check_ids(ids: NDArray[np.int32], vocab_size: int | None, where: str, more: str = "") -> None:
    """Refuse token ids that are no row of the embedding; a `vocab_size` of None knows nothing."""
    if vocab_size is None or not len(ids) or (int(ids.max()) < vocab_size and int(ids.min()) >= 0):
        return
    bad = int(ids.max()) if int(ids.max()) >= vocab_size else int(ids.min())
    raise DataError(
        f"{where}: expected token ids below {vocab_size:,} (rows of the model's embedding), got {bad:,}{more}; the tokenizer "
        "has tokens that the model has not: load it with resize_embedding=True (--resize-embedding), or use the model's own "
        "tokenizer"
    )


def fit_to_model(dataset: Dataset, model: Model, name: str, max_seq_length: int | None = None) -> Dataset:
    """Return the data set as this model can take it: itself, or one whose long samples are cut, which is told.

    Parameters
    ----------
    name : str
        Of the data set, for messages.
    max_seq_length : int, optional
        Where shorter sequences are asked for than the model's context.

    Raises
    ------
    DataError
        A token id is beyond the embedding, or no sample has a token with loss.
    """
    if not hasattr(dataset, "samples"):
        raise DataError(
            f"{name}: expected a Dataset, got a {type(dataset).__name__}; load_dataset(data, model.tokenizer) "
            "makes one of a path, of records or of a table"
        )
    _check_shapes(dataset.samples, name)
    _check_vocabulary(dataset.samples, int(model.architecture.decoder_kwargs["vocab_size"]), name)
    _check_labels(dataset.samples, model.labels, name)
    limit = min(model.context_length, max_seq_length or model.context_length)
    samples = [_cut(sample, limit) if len(sample) > limit else sample for sample in dataset.samples]
    kept = [sample for sample in samples if sample.n_predicted]
    if not kept:
        taken = model.context_with(None) - model.context_length
        cut = f" after they were cut to the {limit} tokens that {taken} virtual ones leave of the context" if taken else ""
        raise DataError(
            f"{name}: expected at least one sample with a token that carries loss, got {len(samples)} without{cut}"
        )
    n_cut, n_dropped = sum(len(sample) > limit for sample in dataset.samples), len(samples) - len(kept)
    if not n_cut and not n_dropped:
        return dataset
    first = next(i for i, sample in enumerate(dataset.samples) if len(sample) > limit or not samples[i].n_predicted)
    cut = f"{n_cut:,} of {len(samples):,} samples cut to the first {limit:,} tokens" if n_cut else ""
    dropped = f"{n_dropped:,} left out (no token with loss)" if n_dropped else ""
    tell(f"{name}: {', '.join(filter(None, (cut, dropped)))}; the first is {_where(dataset.samples[first], first)}")
    return replace(
        dataset,
        samples=kept,
        n_truncated=dataset.n_truncated + n_cut,
        n_without_loss=dataset.n_without_loss + n_dropped,
    )


def _check_shapes(samples: Iterable[Sample], name: str) -> None:
    for i, sample in enumerate(samples):
        if sample.input_ids.ndim != 1 or sample.input_ids.shape != sample.loss_mask.shape:
            raise DataError(
                f"{name}: {_where(sample, i)}: expected input_ids and loss_mask of one shape (n,), got "
                f"{sample.input_ids.shape} and {sample.loss_mask.shape}"
            )
        if not np.issubdtype(sample.input_ids.dtype, np.integer):
            raise DataError(f"{name}: {_where(sample, i)}: expected integers as input_ids, got {sample.input_ids.dtype}")


def _check_labels(samples: Iterable[Sample], labels: Labels | None, name: str) -> None:
    """A classifier learns labels, a language model tokens."""
    shape = (len(labels),) if labels is not None and labels.has_values else ()
    for i, sample in enumerate(samples):
        if (sample.label is not None) != (labels is not None):
            wanted, got = ("labels", "tokens to predict") if labels is not None else ("tokens to predict", "labels")
            raise DataError(
                f"{name}: {_where(sample, i)}: expected {wanted}, got {got}; load the data with this model's tokenizer "
                "(model.tokenizer), which knows whether it is a classifier's"
            )
        if labels is None:
            continue
        label = np.asarray(sample.label)
        is_number = label.shape == () and np.issubdtype(label.dtype, np.integer) and 0 <= int(label) < len(labels)
        if label.shape != shape or not (labels.has_values or is_number):
            wanted = f"values ({len(labels)},)" if labels.has_values else f"a number from 0 to {len(labels) - 1}"
            raise DataError(f"{name}: {_where(sample, i)}: expected {wanted} as the label, got {str(sample.label)[:60]}")


def _check_vocabulary(samples: list[Sample], vocab_size: int, name: str) -> None:
    def is_beyond(sample: Sample) -> bool:
        ids = sample.input_ids
        return bool(len(ids)) and (int(ids.max()) >= vocab_size or int(ids.min()) < 0)

    beyond = [i for i, sample in enumerate(samples) if is_beyond(sample)]
    if beyond:
        more = f" and {len(beyond) - 1:,} more samples like it" if len(beyond) > 1 else ""
        check_ids(samples[beyond[0]].input_ids, vocab_size, f"{name}: {_where(samples[beyond[0]], beyond[0])}", more)


def _cut(sample: Sample, limit: int) -> Sample:
    return replace(sample, input_ids=sample.input_ids[:limit], loss_mask=sample.loss_mask[:limit])


def _where(sample: Sample, i: int) -> str:
    return sample.where or f"sample {i}"
