"""What tests/compilers compares between CPUs and compilers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from compilers.checks import beside, differences, fast_unlike_exact

MAX = {"f neon exact float32 a": "1", "f neon fast bfloat16 a": "2", "f neon int8 bfloat16 run": "3"}
N1 = {"f neon exact float32 a": "1", "f neon fast float32 a": "1", "f neon int8 float32 run": "4"}


def test_operands_of_one_cpu_are_named() -> None:
    assert differences(N1, MAX) == differences(MAX, N1) == []
    said = beside(N1, MAX, "max")
    assert said.startswith(
        "1 of 1 results have the bits of max, 1 of neon fast float32 here alone, 1 of neon int8 float32 here alone"
    )
    assert said.endswith(", 1 of neon fast bfloat16 there alone, 1 of neon int8 bfloat16 there alone")


def test_other_bits() -> None:
    assert differences({**N1, "f neon exact float32 a": "9"}, MAX) == ["f neon exact float32 a"]
    both = {**MAX, "f neon fast bfloat16 b": "5"}
    assert differences(MAX, both) == ["f neon fast bfloat16 b"]  # the CPU has these operands, so it must have computed it
    assert differences({}, {"f neon exact float32 a": "1"}) == ["f neon exact float32 a"]


def test_fast_without_operands_of_its_own_is_exact() -> None:
    assert fast_unlike_exact(N1) == fast_unlike_exact(MAX) == []
    assert fast_unlike_exact({**N1, "f neon fast float32 a": "9"}) == ["f neon fast float32 a"]
