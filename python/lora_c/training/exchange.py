"""The exchange of a step's gradients among ranks, layer by layer beside the backward pass that computes them.

A rank's last backward pass completes the layers from the last one down. What is complete goes out while those below are
computed; a second thread sends it, by a communicator of its own.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._core import GradientTree
from ..comm.communicator import Communicator, Exchanger

_MOST, _FEWEST = 1 << 21, 1 << 14  # elements that are exchanged at a time: the most bounds the memory that it takes
_PIECES = 16  # about
_NAP = 2e-4  # seconds between two looks at the pass
NO_LAYER = -1


class Piece(NamedTuple):
    """Gradients that go out together: elements through all parameters; complete when the layer is, NO_LAYER: with the pass."""

    begin: int
    size: int
    layer: int


def layer_of(name: str, layers: str) -> int:
    """The layer of a parameter, by its name.

    Parameters
    ----------
    layers : str
        The family's name of them, such as model.layers.
    """
    found = re.search(rf"(?:^|\.){re.escape(layers)}\.(\d+)\.", name)
    return int(found[1]) if found else NO_LAYER


def piece_size(elements: int) -> int:
    """The elements of a piece, at most, of so many in all."""
    return min(_MOST, max(_FEWEST, elements // _PIECES))


def pieces_of(sizes: Sequence[int], layers: Sequence[int]) -> list[Piece]:
    """Divide parameters into pieces, in the order in which a backward pass completes them.

    Parameters
    ----------
    sizes, layers : sequence of int
        Elements and layer of each parameter, in the order in which elements are counted.
    """
    most = piece_size(sum(sizes))
    found: list[Piece] = []
    begin = 0
    for size, layer in zip(sizes, layers, strict=True):
        end = begin + size
        if found and size and found[-1].layer == layer and found[-1].size + size <= most:
            found[-1] = Piece(found[-1].begin, found[-1].size + size, layer)
            begin = end
        while begin < end:
            count = min(most, end - begin)
            found.append(Piece(begin, count, layer))
            begin += count
    return sorted(found, key=lambda piece: -piece.layer)  # stable; NO_LAYER is the last one


class Exchange:
    """Adds up what ranks have of a step, piece by piece.

    Each rank adds up one part of every piece, and all get all parts.

    Parameters
    ----------
    comm : Communicator
    tree : GradientTree
    pieces : list of Piece
        The same on every rank.
    """

    def __init__(self, comm: Communicator, tree: GradientTree, pieces: list[Piece]) -> None:
        self._comm, self._tree, self._pieces = comm, tree, pieces
        self._buffers: dict[str, NDArray[np.float32]] = {}

    def all_reduce(
        self, by: Exchanger, covers: Sequence[Sequence[tuple[int, int]]], is_whole: bool, wait: Callable[[int], None]
    ) -> None:
        """Put the sum of the step into the gradients.

        Parameters
        ----------
        by : Exchanger
        covers : sequence
            The nodes that each rank has, in the order of the ranks.
        is_whole : bool
            False: this rank has left the step, and sends what nobody uses, so that the others do not wait for it.
        wait : callable
            Returns when a layer is complete.
        """
        rank, size = self._comm.rank, self._comm.size
        nodes = [node for cover in covers for node in cover]
        own = len(covers[rank])
        for begin, count, layer in self._pieces:
            wait(layer)
            cuts = [count * r // size for r in range(size + 1)]
            lengths = [cuts[r + 1] - cuts[r] for r in range(size)]
            send, place = self._buffer("send", own * count), 0
            if is_whole and own:
                self._tree.join(begin, count)
            for cut, length in zip(cuts, lengths, strict=False):
                for node in range(own):
                    if is_whole and length:
                        self._tree.read(node, begin + cut, send[place : place + length])
                    place += length
            mine = lengths[rank]
            parts = self._buffer("parts", len(nodes) * mine)
            by.all_to_all(send, [own * length for length in lengths], parts, [len(cover) * mine for cover in covers])
            if mine:
                self._tree.combine(nodes, parts.reshape(len(nodes), mine))
            whole = self._buffer("whole", count)
            by.all_gather_floats(parts[:mine], whole, lengths)
            self._tree.write(begin, whole)

    def _buffer(self, name: str, size: int) -> NDArray[np.float32]:
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers[name] = np.empty(size, np.float32)
        return self._buffers[name][:size]


class Beside(threading.Thread):
    """A step's exchange beside the last backward pass of this rank, or behind it.

    Parameters
    ----------
    work : callable
        The exchange; it is given a function that waits for a layer.
    complete_layer : callable
        The lowest layer that is complete in the pass.
    can_overlap : bool
        Whether another thread may exchange during the pass; else `end` does it.

    Attributes
    ----------
    ahead : int
        Pieces whose exchange began before the pass had ended.
    """

    def __init__(
        self, work: Callable[[Callable[[int], None]], None], complete_layer: Callable[[], int], can_overlap: bool
    ) -> None:
        super().__init__(name="lora-c-exchange", daemon=True)
        self._work, self._complete_layer = work, complete_layer
        self._passed = threading.Event()
        self._error: BaseException | None = None
        self._is_left = False
        self.ahead = 0
        if can_overlap:
            self.start()

    def run(self) -> None:
        try:
            self._work(self._wait)
        except BaseException as error:
            self._error = error

    def _wait(self, layer: int) -> None:
        while not self._passed.is_set():
            if layer != NO_LAYER and self._complete_layer() <= layer:
                self.ahead += 1
                return
            time.sleep(_NAP)
        if self._is_left:
            raise RuntimeError("this rank has failed")

    def end(self) -> None:
        """The pass has ended, everything is complete: wait for the exchange, and raise what it has raised."""
        self._passed.set()
        if self.ident is None:
            self.run()
        else:
            self.join()
        if self._error is not None:
            raise self._error

    def leave(self) -> None:
        """The pass has failed: do not wait for others, who are told by the error of this rank."""
        self._is_left = True
        self._passed.set()
