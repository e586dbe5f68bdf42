"""Signals are answered at once, also while the main thread is inside a step that takes long."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_c as lc
from lora_c._core import PassStopped
from lora_c.training.interrupt import Stopped, deferred_interrupt
from lora_c.training.leaving import Leaving


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """A shell starts background jobs deaf to SIGINT."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def later(seconds: float, *numbers: int) -> threading.Thread:
    def send() -> None:
        for number in numbers:
            time.sleep(seconds)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.fixture
def slow_pass(make_model: Callable[..., Path]) -> tuple[lc.Model, Callable[[], float]]:
    """A pass that takes a while."""
    model = lc.load_model(make_model(hidden_size=128, intermediate_size=256, num_hidden_layers=12, head_dim=32,
                                     max_position_embeddings=1024), progress=False)  # fmt: skip
    model.add_adapter(r=4)
    ids = np.random.default_rng(0).integers(3, 60, 1024).astype(np.int32)
    ends, weight = np.array([0, len(ids)], np.int32), np.ones(len(ids), np.float32)
    return model, lambda: model.decoder.forward_backward(ids, ends, ids, weight)


def gradients(model: lc.Model) -> list[np.ndarray[Any, Any]]:
    return [np.array(p.grad) for p in model.trainable_parameters()]


def test_the_first_signal_is_answered_in_the_step_and_the_second_one_leaves_it(
    slow_pass: tuple[lc.Model, Callable[[], float]],
) -> None:
    model, run = slow_pass
    loss = run()
    before = gradients(model)
    said: list[tuple[float, str]] = []
    with deferred_interrupt() as stop:
        leaving = Leaving(stop, model.decoder, lambda line: said.append((time.monotonic(), line)))
        with leaving.during("step"):
            began = time.monotonic()
            run()
        whole = time.monotonic() - began
        sender = later(whole / 8, signal.SIGTERM, signal.SIGTERM)
        began = time.monotonic()
        with pytest.raises(PassStopped, match="stopped between two layers"), leaving.during("step"):
            for _ in range(50):  # long enough for a machine that is busy
                run()
        ended = time.monotonic() - began
        sender.join()
        leaving.end()
    assert [line.partition(" (about")[0] for _, line in said] == [
        "stopping after this step", "leaving this step and saving the state before it; press again to end without",
    ]  # fmt: skip
    assert re.search(r"\(about \d+ s\) and saving; press again to abandon", said[0][1])
    assert said[0][0] - began < ended and stop.requested and stop.exception().number == signal.SIGTERM
    for parameter in model.trainable_parameters():
        parameter.zero_grad()
    assert run() == loss  # what was left has no effect on what comes
    assert all(np.array_equal(a, b) for a, b in zip(gradients(model), before, strict=True))


def test_passes_stop_as_long_as_they_are_told_to(slow_pass: tuple[lc.Model, Callable[[], float]]) -> None:
    model, run = slow_pass
    assert model.decoder.stopping is False
    model.decoder.stopping = True
    for call in (run, lambda: model.decoder.logits([3, 4]), lambda: model.decoder.decode(model.decoder.new_cache(4), [3])):
        with pytest.raises(PassStopped):
            call()
    model.decoder.stopping = False
    assert run() > 0
    with pytest.raises(TypeError, match="stopping: expected True or False, got 1"):
        model.decoder.stopping = 1  # type: ignore[assignment]


def test_the_third_signal_ends_the_program_and_handlers_come_back() -> None:
    with pytest.raises(Stopped) as stopped, deferred_interrupt() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    assert stopped.value.number == signal.SIGINT and stop.requested
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1


def test_a_block_inside_of_another_shares_its_request() -> None:
    with deferred_interrupt() as outer:
        with deferred_interrupt() as inner:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        assert inner is outer and outer.requested
    with deferred_interrupt() as fresh:
        assert not fresh.requested


def test_signals_of_others_go_on_to_who_listened_before() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    signal.set_wakeup_fd(writer)
    try:
        with deferred_interrupt() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert os.read(reader, 8) == bytes([signal.SIGUSR1]) and not stop.requested
    finally:
        assert signal.set_wakeup_fd(-1) == writer
        signal.signal(signal.SIGUSR1, before)
        os.close(reader)
        os.close(writer)


def test_a_program_keeps_its_own_handler_of_sigterm_and_what_it_ignores() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deferred_interrupt() as stop:
            for number in (signal.SIGTERM, signal.SIGHUP):
                os.kill(os.getpid(), number)
            time.sleep(0.01)
            assert not stop.requested and heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_nothing_is_touched() -> None:
    found: list[object] = []

    def run() -> None:
        with deferred_interrupt() as stop:
            found.append((signal.getsignal(signal.SIGINT), stop.requested))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(signal.default_int_handler, False)]
