"""The shim itself, that stands for a GPU: each kernel of tests/cuda/wrong_kernels.cpp has a fault that it must find."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from built import built

sys.path.insert(0, str(Path(__file__).parents[1] / "cuda"))

from check_launches import SHARED_KIB, Launch, wrong_with  # noqa: E402

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run() -> Run:
    program = built("wrong_kernels")

    def run_one(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, name], env=os.environ | environment, capture_output=True, text=True, check=False)

    return run_one


def numbers(run: Run, name: str, **environment: str) -> tuple[int, ...]:
    done = run(name, **environment)
    assert done.returncode == 0, done.stderr
    return tuple(int(n) for n in re.findall(r"\d+", done.stdout))


ENDS = {
    "one_leaves_before_the_barrier": r"__syncthreads is not reached by 1 of 64 threads, which have ended",
    "barrier_and_shuffle": "some lanes of a warp stand at __syncthreads, others at a warp operation",
    "different_masks": "lanes of a warp wait at operations with different masks",
    "one_leaves_before_the_shuffle": r"a warp operation of lane \d+ names lane 3, which has ended",
    "lanes_that_are_not": "a warp operation names lane 8 of a warp of 8",
    "not_in_its_own_mask": "a warp operation of lane 0 with the mask fffffffe, which has not its own lane",
    "asks_outside_the_mask": r"shuffle: lane \d+ asks for lane 20, which the mask 0000ffff has not",
    "misaligned": r"an access of 16 bytes at 0x\w+, which is not aligned",
    "matrices_outside_shared": "ldmatrix outside shared memory",
    "shared_before": "a write 1 bytes before its shared memory",
    "copies_misaligned": r"cp.async to 0x\w+ from 0x\w+, not aligned",
    "too_many_threads": "expected 1 to 1024 threads, got 1056",
    "no_threads": "expected 1 to 1024 threads, got 0",
    "too_high_a_grid": "a grid of 1 x 65536 x 1",
}


@pytest.mark.parametrize(("name", "said"), ENDS.items(), ids=ENDS)
def test_a_wrong_kernel_ends_the_process(run: Run, name: str, said: str) -> None:
    done = run(name)
    assert done.returncode == -signal.SIGABRT
    assert re.fullmatch(rf"shim: {name}(, block 0,0,0, thread \d+)?: {said}\n", done.stderr)


@pytest.mark.parametrize("name", ["writes_behind", "writes_before"])
def test_a_write_outside_a_block_of_memory(run: Run, name: str) -> None:
    done = run(name)
    assert done.returncode == -signal.SIGABRT and done.stderr == "shim: something was written outside a block of 256 bytes\n"


def test_a_write_behind_shared_memory(run: Run) -> None:
    assert run("shared_behind").returncode == -signal.SIGSEGV


def test_a_stream_of_another_device(run: Run) -> None:
    done = run("other_device")
    assert done.returncode == -signal.SIGABRT and "on a stream of device 0 while device 1 is current" in done.stderr


@pytest.mark.parametrize("threads", ["1", "4"])
@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_a_missing_barrier_shows_in_any_order_but_the_right_one(run: Run, seed: str, threads: str) -> None:
    chosen = {"LORA_C_SHIM_SEED": seed, "LORA_C_SHIM_THREADS": threads}
    assert numbers(run, "right", **chosen) == (64, 0)
    right, _ = numbers(run, "without_barrier", **chosen)
    assert right < 48  # one of four warps is the one that must come last


def test_memory_never_written_is_not_a_number(run: Run) -> None:
    assert numbers(run, "reads_unwritten_shared") == (0, 64)


def test_asynchronous_copies_are_made_by_the_wait(run: Run) -> None:
    assert numbers(run, "copies_with_wait") == (32, 0)
    assert numbers(run, "copies_without_wait") == (0, 32)


@pytest.mark.parametrize("name", ["host_changes", "host_reads"])
def test_work_of_a_stream_is_done_early_or_late(run: Run, name: str) -> None:
    early, late = numbers(run, name)
    assert early > 0 and late > early and early + late == 64


@pytest.mark.parametrize(("compute", "kib"), SHARED_KIB.items(), ids=SHARED_KIB)
def test_shared_memory_by_compute_capability(run: Run, compute: str, kib: int) -> None:
    done = run("much_shared", SHIM_COMPUTE=compute)
    refused = f"shim: much_shared: 102400 bytes of shared memory, where a block has at most {kib * 1024} on {compute}\n"
    assert (done.returncode, done.stderr) == ((-signal.SIGABRT, refused) if kib < 100 else (0, ""))


LAUNCHES = {
    "as many registers as there are": (Launch("k", 512, 0), 128, None),
    "in units of 8": (Launch("k", 512, 0), 129, "expected at most 65536 registers, got 136 each"),
    "in units of 4 warps": (Launch("k", 32 * 15, 0), 136, "expected at most 65536 registers, got 136 each"),
    "more than a thread has": (Launch("k", 32, 0), 256, "expected at most 65536 registers, got 256 each"),
    "most shared memory": (Launch("k", 32, 99 * 1024), 32, None),
    "too much shared memory": (Launch("k", 32, 99 * 1024 + 1), 32, "expected at most 99 KiB"),
    "too many threads": (Launch("k", 1025, 0), 8, "expected 1 to 1024 threads"),
    "a kernel that is not in the table": (Launch("other", 32, 0), 8, "expected it in kernels.json, got nothing"),
}


@pytest.mark.parametrize(("launch", "registers", "said"), LAUNCHES.values(), ids=LAUNCHES)
def test_limits_of_a_launch(launch: Launch, registers: int, said: str | None) -> None:
    wrong = wrong_with(launch, "8.6", {"k": registers})
    assert wrong is None if said is None else wrong is not None and wrong.endswith(said)
