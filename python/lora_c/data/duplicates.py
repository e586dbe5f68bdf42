"""Samples that are there twice: within a data set, and in training data and held-out data, which makes a loss mean little."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .samples import Sample

if TYPE_CHECKING:
    from .dataset import Dataset


@dataclass(frozen=True)
class Pair:
    """Two samples that are the same, by their places."""

    held_out: str
    train: str


@dataclass(frozen=True)
class Shared:
    """What of the held-out data is in the training data, too.

    Attributes
    ----------
    samples : list of Pair
        The same ids, whole.
    prompts : list of Pair
        The same ids up to the first token with loss, and another answer.
    """

    samples: list[Pair]
    prompts: list[Pair]


def repeated(dataset: Dataset) -> int:
    """How many samples have the ids of an earlier one."""
    return len(dataset) - len({_digest(sample.input_ids) for sample in dataset.samples})


def shared(train: Dataset, held_out: Dataset) -> Shared:
    """Compare ids: exactly the same ones count, no others."""
    samples: dict[bytes, str] = {}
    prompts: dict[bytes, str] = {}
    for i, sample in enumerate(train.samples):
        samples.setdefault(_digest(sample.input_ids), _place(sample, i))
        for prompt in _prompt(sample):
            prompts.setdefault(prompt, _place(sample, i))
    same, asked = [], []
    for i, sample in enumerate(held_out.samples):
        if (place := samples.get(_digest(sample.input_ids))) is not None:
            same.append(Pair(_place(sample, i), place))
            continue
        found = (prompts[prompt] for prompt in _prompt(sample) if prompt in prompts)
        asked += [Pair(_place(sample, i), place) for place in found]
    return Shared(same, asked)


def _prompt(sample: Sample) -> Iterator[bytes]:
    """The digest of what stands before the first token with loss; texts without a prompt (one token begins them) have none."""
    first = int(np.argmax(sample.loss_mask)) if len(sample) else 0
    if first > 1:
        yield _digest(sample.input_ids[:first])


def _digest(ids: NDArray[np.int32]) -> bytes:
    return blake2b(np.ascontiguousarray(ids, np.int32).tobytes(), digest_size=16).digest()


def _place(sample: Sample, i: int) -> str:
    return sample.where or f"sample {i + 1}"
