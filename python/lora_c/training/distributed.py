"""A step that is divided among ranks: who computes which micro-batches, and how their gradients meet.

Every rank has a range of the step's micro-batches. What it has summed are nodes of one tree over all of them
(`lora_c/comm`), so the sum has the same bits for any number of ranks and any division.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._core import GradientTree, PassStopped
from ..comm.communicator import Communicator, any_rank, is_main
from ..data.batching import pack_group
from ..notices import tell

if TYPE_CHECKING:
    from .interrupt import StopRequest
    from .trainer import Trainer

PIECE = 1 << 21  # elements that are exchanged at a time: what bounds the memory that it takes


class StepSums(NamedTuple):
    """Of all micro-batches of a step: summed loss, summed loss weight, tokens."""

    loss: float
    weight: float
    tokens: int


def division(n: int, size: int) -> list[tuple[int, int]]:
    """(first, last) of the micro-batches of each rank; where there are fewer than ranks, some have none."""
    return [(n * rank // size, n * (rank + 1) // size) for rank in range(size)]


def tell_idle(trainer: Trainer) -> None:
    """Say it where some ranks have nothing to do."""
    size, micro = trainer.comm.size, trainer.config.gradient_accumulation_steps
    if micro < size and is_main(trainer.comm):
        tell(
            f"{size - micro} of {size} ranks have nothing to do: a step has {micro} micro-batches "
            f"(gradient_accumulation_steps); more of them, of fewer sequences each, are divided among all"
        )


def is_left(trainer: Trainer, stop: StopRequest) -> bool:
    """Whether somebody has asked a run to end before its last step; every rank has the same answer."""
    return any_rank(trainer.comm, stop.requested or trainer.callbacks.stopping)


class Share:
    """What a rank does of the steps of a run.

    Attributes
    ----------
    comm : Communicator
        The ranks.
    micro_batches, tokens : int
        That this rank has computed.
    seconds, reduce_seconds : float
        Of its passes, and of the exchange of gradients, the wait for slower ranks included.
    """

    def __init__(self, comm: Communicator, parameters: Sequence[Any]) -> None:
        self.comm, self.tree = comm, GradientTree(parameters)
        self._buffers: dict[str, NDArray[np.float32]] = {}
        self.begin()

    def begin(self) -> None:
        """Count anew, for a call of `train`."""
        self.micro_batches = self.tokens = 0
        self.seconds = self.reduce_seconds = 0.0

    def gradients(self, trainer: Trainer, groups: Sequence[NDArray[np.int64]], step: int) -> StepSums:
        """Put the gradients of the mean loss of a step into the parameters.

        Raises
        ------
        PassStopped
            On every rank, where one was told to leave the step.
        """
        began, n, comm = time.perf_counter(), len(groups), self.comm
        first, last = division(n, comm.size)[comm.rank]
        batches = [pack_group(trainer.train_data, group) for group in groups[first:last]]
        counts = _in_order(comm.all_gather([(batch.total_weight, batch.n_tokens) for batch in batches]))
        weight = sum(weight for weight, _ in counts)
        losses: list[float] = []
        with trainer.leaving.during("step"):
            self.tree.begin(n, first, last)
            stopped = None
            try:
                for i, batch in enumerate(batches, step * trainer.config.gradient_accumulation_steps + first):
                    losses.append(trainer._forward_backward(batch, 1.0 / weight, i))
                    self.tree.next()
            except PassStopped as error:
                stopped = error
            passed = time.perf_counter()
            of_ranks = comm.all_gather(None if stopped else losses)
            if None in of_ranks:
                raise stopped or PassStopped("another rank was stopped")
            if comm.size > 1:
                self._all_reduce(n)
        self.micro_batches += len(batches)
        self.tokens += sum(batch.n_tokens for batch in batches)
        self.seconds += passed - began
        self.reduce_seconds += time.perf_counter() - passed
        return StepSums(_in_turn(_in_order(of_ranks)), weight, sum(tokens for _, tokens in counts))

    def _all_reduce(self, n: int) -> None:
        """Each rank adds up one part of every piece of the gradients, and all get all parts."""
        comm = self.comm
        covers = [_core.tree_cover(n, *part) for part in division(n, comm.size)]
        nodes = [node for cover in covers for node in cover]
        own = len(covers[comm.rank])
        for begin in range(0, self.tree.elements, PIECE):
            count = min(PIECE, self.tree.elements - begin)
            cuts = [count * rank // comm.size for rank in range(comm.size + 1)]
            lengths = [cuts[rank + 1] - cuts[rank] for rank in range(comm.size)]
            send, place = self._buffer("send", own * count), 0
            for cut, length in zip(cuts, lengths, strict=False):
                for node in range(own):
                    self.tree.read(node, begin + cut, send[place : place + length])
                    place += length
            mine = lengths[comm.rank]
            parts = self._buffer("parts", len(nodes) * mine)
            comm.all_to_all(send, [own * length for length in lengths], parts, [len(cover) * mine for cover in covers])
            if mine:
                _core.tree_combine(n, nodes, parts.reshape(len(nodes), mine))
            whole = self._buffer("whole", count)
            comm.all_gather_floats(parts[:mine], whole, lengths)
            self.tree.write(begin, whole)

    def _buffer(self, name: str, size: int) -> NDArray[np.float32]:
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers[name] = np.empty(size, np.float32)
        return self._buffers[name][:size]

    def record(self) -> dict[str, Any]:
        """What run.json says of this rank."""
        return {
            "rank": self.comm.rank, "host": self.comm.host, "threads": _core.get_num_threads(),
            "micro_batches": self.micro_batches, "tokens": self.tokens, "seconds": round(self.seconds, 3),
            "reduce_seconds": round(self.reduce_seconds, 3),
        }  # fmt: skip


def _in_order(of_ranks: Sequence[Sequence[Any]]) -> list[Any]:
    """What ranks have of their micro-batches, in the order of the micro-batches."""
    return [value for values in of_ranks for value in values]


def _in_turn(values: Sequence[float]) -> float:
    """The sum from the first to the last."""
    total = 0.0
    for value in values:
        total += value
    return total
