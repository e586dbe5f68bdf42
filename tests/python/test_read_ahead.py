"""Reading ahead of a mapping: what is read, how far, and that it ends with its block."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lora_c.checkpoints import read_ahead as module
from lora_c.checkpoints.read_ahead import Extent, read_ahead
from lora_c.model.opening import load_model


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is read of a file that is not in memory, in pieces of 10 bytes and at most 30 ahead."""
    seen: list[tuple[int, int]] = []
    real = module.os.preadv

    def preadv(handle: int, buffers: list[memoryview], at: int, *flags: int) -> int:
        seen.append((at, at + len(buffers[0])))
        return real(handle, buffers, at, *flags)

    monkeypatch.setattr(module, "CHUNK", 10)
    monkeypatch.setattr(module, "WINDOW", 30)
    monkeypatch.setattr(module, "_is_cached", lambda *args: False)
    monkeypatch.setattr(module.os, "preadv", preadv)
    return seen


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_in_order_and_within_the_window(tmp_path: Path, reads: list[tuple[int, int]]) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    steps = [
        [Extent(path, 60, 85)],
        [Extent(path, 0, 20)],
        [],
        [Extent(path, 20, 31), Extent(path, 90, 95)],
        [Extent(path, 40, 60)],
    ]
    expected = [(60, 70), (70, 80), (80, 85), (0, 10), (10, 20), (20, 30), (30, 31), (90, 95), (40, 50), (50, 60)]
    with read_ahead(steps) as reached:
        reached(0)
        wait_for(lambda: len(reads) >= 6)
        time.sleep(0.02)
        assert reads == expected[:6]  # of step 0, and three pieces beyond it
        reached(2)
        wait_for(lambda: len(reads) >= 8)
        reached(4)
        wait_for(lambda: len(reads) == 10)
    assert reads == expected


def test_it_ends_with_the_block(tmp_path: Path, reads: list[tuple[int, int]]) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    before = threading.active_count()
    with pytest.raises(KeyError), read_ahead([[], [Extent(path, 0, 1000)], [Extent(tmp_path / "none", 0, 5)]]) as reached:
        reached(0)
        raise KeyError
    assert threading.active_count() == before and len(reads) <= 4
    with read_ahead([[Extent(tmp_path / "none", 0, 5)]]) as reached:  # no error of its own
        reached(0)
    assert threading.active_count() == before


def test_what_is_in_memory_is_left_alone(tmp_path: Path) -> None:
    if not hasattr(module.os, "RWF_NOWAIT"):
        pytest.skip("only Linux can say what is in memory (RWF_NOWAIT)")
    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))
    path.read_bytes()
    handle = module.os.open(path, module.os.O_RDONLY)
    try:
        module.os.preadv(handle, [bytearray(1)], 50_000, module.os.RWF_NOWAIT)
        assert module._is_cached(handle, 50_000, bytearray(1))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("the file system of the temporary folder does not know RWF_NOWAIT")
    finally:
        module.os.close(handle)
    reader = module._Reader([])
    reader._read(path, 0, 100_000, bytearray(0), bytearray(1))  # no room to read anything into: it does not try
    for opened in reader._handles.values():
        module.os.close(opened)


def test_weights_keep_the_order_of_the_forward_pass(make_model: Callable[..., Path]) -> None:
    model = load_model(make_model(num_hidden_layers=11), trainable="full")
    assert list(model.weights) == [spec.name for spec in model.architecture.weights()]
    assert [p.name for p in model.trainable_parameters()] == [spec.file_name for spec in model.architecture.weights()]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_weights_are_named_when_quantizing(make_model: Callable[..., Path], bad: float) -> None:
    from safetensors.numpy import load_file, save_file

    from lora_c.errors import CheckpointError

    folder = make_model()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][7, 5] = bad
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=rf"layers.1.mlp.up_proj.weight: expected finite numbers, got {bad} at index \(7, 5\)"
    ):
        load_model(folder, quantize="nf4")
