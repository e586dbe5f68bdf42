"""Held-out batches divided among ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from .._core import PassStopped
from ..comm.communicator import Communicator
from ..data.batching import PackedBatch, pack, token_groups

if TYPE_CHECKING:
    from ..data import Dataset

_Found = TypeVar("_Found")


def each_batch(
    dataset: Dataset, max_tokens: int, measured: Callable[[PackedBatch], _Found], comm: Communicator | None = None
) -> Iterator[_Found]:
    """What is measured of each batch, in their order; every rank computes some of them and gets all.

    Raises
    ------
    PassStopped
        On every rank, where one was told to leave.
    """
    groups = token_groups(dataset.samples, max_tokens)
    if comm is None or comm.size == 1:
        yield from (measured(pack(group)) for group in groups)
        return
    stopped, own = None, []
    try:
        own = [measured(pack(group)) for i, group in enumerate(groups) if i % comm.size == comm.rank]
    except PassStopped as error:
        stopped = error
    of_ranks = comm.all_gather(None if stopped else own)
    if None in of_ranks:
        raise stopped or PassStopped("another rank was stopped")
    for i in range(sum(map(len, of_ranks))):
        yield of_ranks[i % comm.size][i // comm.size]
