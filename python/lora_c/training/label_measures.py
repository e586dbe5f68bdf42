"""What is measured of a classifier on data with labels: its loss, and how well its answers agree with them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..comm.communicator import Communicator
from ..families.labels import Labels
from . import label_metrics as metrics
from .shared_batches import each_batch

if TYPE_CHECKING:
    from ..data import Dataset
    from ..model.model import Model

F64 = NDArray[np.float64]


def label_measures(model: Model, dataset: Dataset, max_tokens: int, comm: Communicator | None = None) -> dict[str, float]:
    """Return the measures of a classifier by name, `loss` first; a correlation with what is the same throughout is 0.

    The loss is the mean over the sequences, as in training. With one label of several: accuracy, f1_macro,
    matthews_correlation, and with two f1, that of the second. With several labels each: accuracy (of whole rows), f1_micro,
    f1_macro. With values: mse, and of one value for each text pearson and spearmanr.
    """
    assert model.labels is not None
    parts = each_batch(dataset, max_tokens, lambda batch: model.decoder.last_logits(batch.input_ids, batch.cu_seqlens), comm)
    logits = np.concatenate(list(parts)).astype(np.float64)
    labels = np.asarray([sample.label for sample in dataset.samples])
    found = {"loss": _loss(model.labels, logits, labels)} | _agreement(model.labels, logits, labels)
    return {name: 0.0 if name != "loss" and math.isnan(value) else value for name, value in found.items()}


def _loss(labels: Labels, logits: F64, given: NDArray[Any]) -> float:
    if labels.problem_type == "regression":
        return metrics.mean_squared_error(given.reshape(logits.shape), logits)
    if labels.problem_type == "multi_label_classification":
        return float(np.mean(np.maximum(logits, 0) - logits * given + np.log1p(np.exp(-np.abs(logits)))))
    top = logits.max(axis=1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return float(np.mean(log_sum - logits[np.arange(len(logits)), given]))


def _agreement(labels: Labels, logits: F64, given: NDArray[Any]) -> dict[str, float]:
    if labels.problem_type == "regression":
        values = given.reshape(logits.shape)
        found = {"mse": metrics.mean_squared_error(values, logits)}
        if len(labels) == 1:
            found |= {"pearson": metrics.pearson(values, logits), "spearmanr": metrics.spearmanr(values, logits)}
        return found
    if labels.problem_type == "multi_label_classification":
        marks, said = given >= 0.5, logits >= 0
        names = {"accuracy": metrics.accuracy, "f1_micro": metrics.f1_micro, "f1_macro": metrics.f1_macro}
        return {name: measure(marks, said) for name, measure in names.items()}
    said = logits.argmax(axis=1)
    found = {"accuracy": metrics.accuracy(given, said), "f1": metrics.f1(given, said)}
    found |= {"f1_macro": metrics.f1_macro(given, said), "matthews_correlation": metrics.matthews_correlation(given, said)}
    return found if len(labels) == 2 else {name: value for name, value in found.items() if name != "f1"}
