"""The exchange of gradients beside a backward pass: what goes out when, and that ranks get the sum of all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lora_c
from lora_c import _core
from lora_c.training.distributed import division
from lora_c.training.exchange import NO_LAYER, Beside, Exchange, Piece, layer_of, piece_size, pieces_of


@pytest.mark.parametrize(
    ("name", "layers", "layer"),
    [
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight", "model.layers", 3),
        ("model.layers.12.input_layernorm.weight", "model.layers", 12),
        ("transformer.h.0.attn.c_attn.weight", "transformer.h", 0),
        ("model.embed_tokens.weight", "model.layers", NO_LAYER),
        ("lm_head.lora_A.weight", "model.layers", NO_LAYER),
        ("model.layersX.3.weight", "model.layers", NO_LAYER),
        ("prompt_embeddings", "model.layers", NO_LAYER),
    ],
)
def test_the_layer_of_a_parameter(name: str, layers: str, layer: int) -> None:
    assert layer_of(name, layers) == layer


def test_pieces_are_all_elements_in_the_order_of_a_backward_pass() -> None:
    sizes, layers = [7, 3_000_000, 5, 40_000, 0, 9, 4], [NO_LAYER, 0, 0, 1, 1, 2, NO_LAYER]
    pieces = pieces_of(sizes, layers)
    assert [piece.layer for piece in pieces] == sorted((piece.layer for piece in pieces), reverse=True)
    covered = sorted((piece.begin, piece.begin + piece.size) for piece in pieces)
    assert covered[0][0] == 0 and covered[-1][1] == sum(sizes)
    assert all(end == begin for (_, end), (begin, _) in zip(covered, covered[1:], strict=False))
    assert max(piece.size for piece in pieces) <= piece_size(sum(sizes)) < 3_000_000
    begin = 0
    for size, layer in zip(sizes, layers, strict=True):  # no element is said to be complete before its layer is
        assert all(p.layer <= layer for p in pieces if p.begin < begin + size and begin < p.begin + p.size and size)
        begin += size


class Meeting:
    """Ranks that are threads of this process: what each sends lies here until all have come."""

    def __init__(self, size: int) -> None:
        self.size, self.sent, self.barrier = size, [None] * size, threading.Barrier(size, timeout=30)
        self.calls: list[list[str]] = [[] for _ in range(size)]


class OneRank:
    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting, self.rank, self.size = meeting, rank, meeting.size

    def _all(self, what: Any) -> list[Any]:
        self._meeting.sent[self.rank] = what
        self._meeting.barrier.wait()
        found = list(self._meeting.sent)
        self._meeting.barrier.wait()
        return found

    def all_to_all(self, send: Any, to: Any, receive: Any, of: Any) -> None:
        self._meeting.calls[self.rank].append("all_to_all")
        place = 0
        for rank, (theirs, lengths) in enumerate(self._all((send.copy(), list(to)))):
            begin = sum(lengths[: self.rank])
            receive[place : place + of[rank]] = theirs[begin : begin + lengths[self.rank]]
            place += of[rank]

    def all_gather_floats(self, own: Any, receive: Any, of: Any) -> None:
        receive[:] = np.concatenate(self._all(own.copy()))


SIZES, LAYERS = [33_000, 1, 7_001, 20_000], [0, NO_LAYER, 1, 1]


def leaf(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(sum(SIZES)).astype(np.float32)


def set_gradients(parameters: list[Any], values: np.ndarray) -> None:
    for parameter, part in zip(parameters, np.split(values, np.cumsum(SIZES)[:-1]), strict=True):
        np.asarray(parameter.grad)[:] = part


def gradients(parameters: list[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(parameter.grad) for parameter in parameters])


def summed(meeting: Meeting, rank: int, n: int, left: int | None) -> np.ndarray:
    """The gradients of a rank after a step of n micro-batches; the rank `left` has left it before its last one."""
    parameters = [_core.Parameter(np.zeros(size, np.float32)) for size in SIZES]
    tree = _core.GradientTree(parameters)
    first, last = division(n, meeting.size)[rank]
    tree.begin(n, first, last)
    for i in range(first, last):
        if i == last - 1 and rank != left:
            tree.begin_last()
        set_gradients(parameters, leaf(i))
        if i < last - 1:
            tree.next()
    by: Any = OneRank(meeting, rank)
    covers = [_core.tree_cover(n, *part) for part in division(n, meeting.size)]
    Exchange(by, tree, pieces_of(SIZES, LAYERS)).all_reduce(by, covers, rank != left, lambda layer: None)
    return gradients(parameters)


def together(size: int, n: int, left: int | None = None) -> list[np.ndarray]:
    meeting, found = Meeting(size), [np.empty(0)] * size

    def one(rank: int) -> None:
        found[rank] = summed(meeting, rank, n, left)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return found


@pytest.mark.parametrize(("size", "n"), [(2, 2), (2, 5), (3, 7), (4, 3)])
def test_every_rank_gets_the_sum_of_one_process(size: int, n: int) -> None:
    expected = summed(Meeting(1), 0, n, None)
    exact = np.sum([leaf(i).astype(np.float64) for i in range(n)], axis=0)
    assert np.abs(expected - exact).max() < 1e-5
    for found in together(size, n):
        assert found.tobytes() == expected.tobytes()


def test_a_rank_that_has_left_the_step_does_not_keep_the_others() -> None:
    assert len(together(2, 5, left=1)) == 2


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(1e-3)


def test_what_is_complete_goes_out_before_the_pass_has_ended() -> None:
    gone: list[int] = []
    complete = 3  # layers: none is

    def work(wait: Callable[[int], None]) -> None:
        for piece in (Piece(0, 1, 2), Piece(1, 1, 1), Piece(2, 1, 0), Piece(3, 1, NO_LAYER)):
            wait(piece.layer)
            gone.append(piece.layer)

    beside = Beside(work, lambda: complete, can_overlap=True)
    time.sleep(0.01)
    assert gone == []
    complete = 1
    wait_for(lambda: len(gone) == 2)
    time.sleep(0.01)
    assert gone == [2, 1] and beside.ahead == 2
    complete = 0
    wait_for(lambda: len(gone) == 3)
    time.sleep(0.01)
    assert gone == [2, 1, 0]
    beside.end()
    assert gone == [2, 1, 0, NO_LAYER] and beside.ahead == 3


def test_without_a_second_thread_all_goes_out_at_the_end() -> None:
    threads: list[threading.Thread] = []

    def work(wait: Callable[[int], None]) -> None:
        wait(1)
        threads.append(threading.current_thread())

    beside = Beside(work, lambda: 0, can_overlap=False)
    time.sleep(0.01)
    assert threads == []
    beside.end()
    assert threads == [threading.current_thread()] and beside.ahead == 0


def test_what_the_exchange_raises_comes_out_at_its_end() -> None:
    def work(wait: Callable[[int], None]) -> None:
        raise MemoryError("no room")

    beside = Beside(work, lambda: 0, can_overlap=True)
    with pytest.raises(MemoryError, match="no room"):
        beside.end()


def test_a_pass_that_fails_does_not_wait_for_the_exchange() -> None:
    beside = Beside(lambda wait: wait(NO_LAYER), lambda: 0, can_overlap=True)
    beside.leave()
    beside.join(20)
    assert not beside.is_alive()


def test_the_complete_layer_of_a_decoder_falls_during_a_pass() -> None:
    """Watched by another thread; between two passes there is none."""
    model = lora_c.load_model("demo", trainable="full", device="cpu")
    decoder, layers = model.decoder, model.architecture.decoder_kwargs["num_hidden_layers"]
    seen, ended = [decoder.complete_layer], threading.Event()

    def watch() -> None:
        while not ended.is_set():
            if (layer := decoder.complete_layer) != seen[-1]:
                seen.append(layer)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    ids = np.zeros(2048, np.int32)
    decoder.forward_backward(ids, np.arange(0, 2049, 512, dtype=np.int32), ids, np.ones(2048, np.float32))
    ended.set()
    watching.join()
    assert decoder.complete_layer == layers == seen[0]
    passed = seen[1:-1] if seen[-1] == layers else seen[1:]
    assert passed and passed == sorted(passed, reverse=True) and set(passed) <= set(range(layers))
