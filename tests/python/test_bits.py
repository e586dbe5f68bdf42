"""The bits of results are the recorded ones, see tests/bits/record.py; `make bits` compares all, with 1 to 4 threads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from bits import record
from bits.cases import digests


def everything(name: str) -> bool:
    return True


def emulated(name: str) -> bool:
    return record.belongs("neon/exact", name)


def families(name: str) -> bool:
    return name.endswith("/float32") and not name.startswith("wide") and "_" not in name


# The slow rungs compute fewer cases.
@pytest.mark.parametrize(
    ("kernels", "threads", "wanted"),
    [
        ("ref/exact", 2, families), ("portable/exact", 3, families), ("avx2/exact", 4, everything),
        ("avx512/exact", 1, everything), ("avx512/bfloat16", 3, everything), ("avx512/int16", 2, everything),
        ("neon/exact", 2, emulated), ("neon/bfloat16", 3, emulated),
    ],
)  # fmt: skip
def test_results_have_the_recorded_bits(kernels: str, threads: int, wanted: Callable[[str], bool]) -> None:
    reason = record.built_otherwise(kernels) or record.missing(kernels)
    if reason is not None:
        pytest.skip(reason)
    with record.chosen(kernels, threads):
        results = digests(wanted)
    assert len(results) > 10 and record.differences(kernels, results, whole=wanted is everything) == []


@pytest.mark.parametrize(("kernels", "threads"), [("avx2/int8", 2), ("avx512/int8", 4), ("neon/int8", 3)])
def test_int8_has_the_recorded_bits(kernels: str, threads: int) -> None:
    """In a process of its own: one in which other tests have used a device that lacks int8 is refused it."""
    if (reason := record.built_otherwise(kernels)) is not None:
        pytest.skip(reason)
    command = [sys.executable, record.__file__, "--threads", str(threads), kernels]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if f"{kernels}: left out" in done.stdout:
        pytest.skip(done.stdout)
    assert done.returncode == 0 and ", 0 differ" in done.stdout, done.stdout + done.stderr


def test_int8_is_another_arithmetic_in_all_but_merges() -> None:
    exact, int8 = record.recorded("avx512/exact"), record.recorded("avx512/int8")
    assert exact.keys() == int8.keys()
    assert {name.rpartition("/")[2] for name in exact if exact[name] == int8[name]} == {"merge"}


@pytest.mark.parametrize(("kernels", "threads"), [("avx2/exact", 2), ("avx512/bfloat16", 2)])
def test_a_device_with_the_mathematics_of_the_cpu_has_its_bits(fake: str, kernels: str, threads: int) -> None:
    reason = record.missing(kernels) or record.built_otherwise(kernels)
    if reason is not None:
        pytest.skip(reason)
    with record.chosen(kernels, threads):
        results = digests(device=fake)
    assert record.differences(kernels, results) == []


def test_another_bit_is_another_digest() -> None:
    results = record.recorded("avx2/exact")
    assert record.differences("avx2/exact", results) == []
    name = next(iter(results))
    assert record.differences("avx2/exact", {**results, name: "0" * 16}) == [name]
    assert record.differences("avx2/exact", {key: value for key, value in results.items() if key != name}) == [name]
