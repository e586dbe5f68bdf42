"""A step that is divided among ranks: who computes which micro-batches, and how their gradients meet.

Every rank has a range of the step's micro-batches. What it has summed are nodes of one tree over all of them
(`lora_c/comm`), so the sum has the same bits for any number of ranks and any division.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._core import GradientTree, PassStopped
from ..comm.communicator import Communicator, any_rank, is_main
from ..data.batching import pack_group
from ..errors import LoraCError
from ..notices import tell
from .exchange import Beside, Exchange, layer_of, pieces_of

if TYPE_CHECKING:
    from .interrupt import StopRequest
    from .trainer import Trainer


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


def raise_together(trainer: Trainer) -> None:
    """Raise what a callback has raised on rank 0; the other ranks, which call none, say so.

    Raises
    ------
    LoraCError
        On the other ranks.
    """
    error = trainer.callbacks.error
    of_ranks = trainer.comm.all_gather(error and f"{type(error).__name__}: {error}")
    trainer.callbacks.raise_error()
    if (said := next(filter(None, of_ranks), None)) is not None:
        raise LoraCError(f"callbacks: expected those of rank 0 to end without an error, got {said}; a checkpoint was saved")


class Share:
    """What a rank does of the steps of a run.

    Attributes
    ----------
    comm : Communicator
        The ranks.
    micro_batches, tokens : int
        That this rank has computed.
    seconds, reduce_seconds : float
        Of its passes, and of what of the exchange of gradients came after them, the wait for slower ranks included.
    ahead : int
        Pieces of gradients whose exchange began before a pass had ended.
    """

    def __init__(self, comm: Communicator, parameters: Sequence[Any], layers: str) -> None:
        self.comm, self.tree = comm, GradientTree(parameters)
        pieces = pieces_of([p.size for p in parameters], [layer_of(p.name, layers) for p in parameters])
        self._exchange = Exchange(comm, self.tree, pieces)
        self.begin()

    def begin(self) -> None:
        """Count anew, for a call of `train`."""
        self.micro_batches = self.tokens = self.ahead = 0
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
        with trainer.leaving.during("step"):
            self.tree.begin(n, first, last)
            exchange: Beside | None = None
            losses: list[float] = []
            stopped: PassStopped | None = None
            try:
                for i, batch in enumerate(batches):
                    is_last = comm.size > 1 and i == len(batches) - 1
                    if is_last:
                        self.tree.begin_last()
                        exchange = self._exchange_beside(trainer, n)
                    place = step * trainer.config.gradient_accumulation_steps + first + i
                    losses.append(trainer._forward_backward(batch, 1.0 / weight, place))
                    if not is_last:
                        self.tree.next()
            except PassStopped as error:
                stopped = error
            except BaseException:
                if exchange is not None:
                    exchange.leave()
                raise
            passed = time.perf_counter()
            if comm.size > 1:
                exchange = exchange or self._exchange_beside(trainer, n, is_whole=not batches)
                exchange.end()
                self.ahead += exchange.ahead
            of_ranks = comm.all_gather(None if stopped else losses)
            if None in of_ranks:
                raise stopped or PassStopped("another rank was stopped")
        self.micro_batches += len(batches)
        self.tokens += sum(batch.n_tokens for batch in batches)
        self.seconds += passed - began
        self.reduce_seconds += time.perf_counter() - passed
        return StepSums(_in_turn(_in_order(of_ranks)), weight, sum(tokens for _, tokens in counts))

    def _exchange_beside(self, trainer: Trainer, n: int, is_whole: bool = True) -> Beside:
        """Begin the exchange of a step, beside the pass that follows where that can be."""
        comm, decoder = self.comm, trainer.model.decoder
        covers = [_core.tree_cover(n, *part) for part in division(n, comm.size)]

        def work(wait: Callable[[int], None]) -> None:
            self._exchange.all_reduce(comm.beside or comm, covers, is_whole, wait)

        # A device has no gradients before it has ended the pass that was asked for.
        can_overlap = comm.beside is not None and trainer.model.device == "cpu"
        return Beside(work, lambda: decoder.complete_layer, can_overlap)

    def record(self) -> dict[str, Any]:
        """What run.json says of this rank."""
        return {
            "rank": self.comm.rank, "host": self.comm.host, "threads": _core.get_num_threads(),
            "micro_batches": self.micro_batches, "tokens": self.tokens, "seconds": round(self.seconds, 3),
            "reduce_seconds": round(self.reduce_seconds, 3), "pieces_ahead": self.ahead,
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
