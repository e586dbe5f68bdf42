"""Samples to packed batches: one flat array of tokens with cu_seqlens, no padding, no attention across samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..configs import TrainConfig
from . import Dataset, Sample

_Sized = TypeVar("_Sized", bound=Sized)


@dataclass(frozen=True)
class PackedBatch:
    """A batch without padding: targets[m] is the token after m; the last token of a segment has loss_weight 0.

    With labels only the last tokens have a loss_weight, and the label of their segment as target.

    Shapes
    ------
    input_ids, targets (M,) int32; cu_seqlens (S + 1,) int32; loss_weight (M,) float32. Values as targets: (M, num_labels)
    float32.
    """

    input_ids: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    targets: NDArray[Any]
    loss_weight: NDArray[np.float32]

    @property
    def n_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def total_weight(self) -> float:
        return float(self.loss_weight.sum(dtype=np.float64))


def pack(samples: Sequence[Sample]) -> PackedBatch:
    """Put samples behind each other."""
    ids = np.concatenate([s.input_ids for s in samples]).astype(np.int32)
    cu = np.zeros(len(samples) + 1, np.int32)
    np.cumsum([len(s) for s in samples], out=cu[1:])
    if samples and samples[0].label is not None:
        return PackedBatch(ids, cu, *_labels(samples, cu))
    targets = np.append(ids[1:], np.int32(0)).astype(np.int32)
    weight = np.append(np.concatenate([s.loss_mask for s in samples])[1:], np.float32(0)).astype(np.float32)
    weight[cu[1:] - 1] = 0.0
    targets[cu[1:] - 1] = 0
    return PackedBatch(ids, cu, targets, weight)


def _labels(samples: Sequence[Sample], cu: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Targets and loss weights of samples with labels: numbers of labels, or values."""
    labels, last = np.asarray([s.label for s in samples]), cu[1:] - 1
    if np.issubdtype(labels.dtype, np.integer) and labels.ndim == 1:
        targets = np.zeros(cu[-1], np.int32)
        targets[last] = labels
    else:
        values = labels.reshape(len(samples), -1)
        targets = np.zeros((cu[-1], values.shape[1]), np.float32)
        targets[last] = values
    weight = np.zeros(cu[-1], np.float32)
    weight[last] = 1.0
    return targets, weight


def epoch_order(n: int, seed: int, epoch: int, shuffle: bool = True) -> NDArray[np.int64]:
    """The order of an epoch is a function of (seed, epoch), so a resumed run sees the same batches."""
    if not shuffle:
        return np.arange(n)
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)


def steps_per_epoch(n: int, examples_per_step: int) -> int:
    return -(-n // examples_per_step)


def total_steps(n: int, config: TrainConfig) -> int:
    """Optimizer steps of a run over n samples; a last epoch that is not whole is rounded up, as in transformers."""
    if config.max_steps > 0:
        return config.max_steps
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return math.ceil(config.num_train_epochs * steps_per_epoch(n, per_step))


def step_batches(
    dataset: Dataset, step: int, *, batch_size: int, accumulation: int, seed: int, shuffle: bool = True
) -> tuple[int, list[PackedBatch]]:
    """(epoch, micro-batches) of optimizer step ``step`` (from 0). The last step of an epoch may be shorter."""
    epoch, groups = step_groups(len(dataset), step, batch_size, accumulation, seed, shuffle)
    return epoch, [pack_group(dataset, group) for group in groups]


def step_groups(
    n: int, step: int, batch_size: int, accumulation: int, seed: int, shuffle: bool = True
) -> tuple[int, list[NDArray[np.int64]]]:
    """(epoch, numbers of the samples of each micro-batch) of a step over n samples."""
    per_step = batch_size * accumulation
    epoch, index = divmod(step, steps_per_epoch(n, per_step))
    chosen = epoch_order(n, seed, epoch, shuffle)[index * per_step : (index + 1) * per_step]
    return epoch, [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]


def pack_group(dataset: Dataset, group: NDArray[np.int64]) -> PackedBatch:
    """The micro-batch of these samples."""
    return pack([dataset[int(i)] for i in group])


def token_groups(items: Iterable[_Sized], max_tokens: int) -> Iterator[list[_Sized]]:
    """Samples or arrays of ids in their order, together while they have at most max_tokens (a longer one goes alone)."""
    group: list[_Sized] = []
    total = 0
    for item in items:
        if group and total + len(item) > max_tokens:
            yield group
            group, total = [], 0
        group.append(item)
        total += len(item)
    if group:
        yield group


def evaluation_batches(dataset: Dataset, max_tokens: int) -> Iterator[PackedBatch]:
    """All samples in order, packed to at most max_tokens a batch (a longer sample goes alone)."""
    return map(pack, token_groups(dataset.samples, max_tokens))
