"""Counts the instructions of the hot loops for aarch64 and fails where one is over its budget or keeps vectors on the stack.

Usage: python tests/lint/lint_arm_loops.py LIBRARY.a ...     (make check-arm)
The budgets are those of docs/ARM.md, which says what they come from; speed was not measured on hardware, so this is what holds
the loops. A loop is known by its file and by its instructions that multiply and look up. Says so and succeeds where there is
no objdump for aarch64.
"""

import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

FUNCTION = re.compile(r"^[0-9a-f]+ <(\S+)>:$")
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
STACK = re.compile(r"\[(?:sp|x29)\b")
VECTOR = re.compile(r"\b[qd]\d+\b")


@dataclass(frozen=True)
class Loop:
    """One loop: where it is, what it holds, how much it does and how many instructions it may take."""

    what: str
    object: str
    holds: dict[str, int]
    work: int
    unit: str
    budget: int
    function: str = ""
    gcc_alone: bool = False  # Clang's library has it not


LOOPS = (
    Loop("matrix product, float32, 12 x 8", "gemm_neon.o", {"fmla": 24}, 96, "multiply-add", 36, "micro_12x2_neon"),
    Loop(
        "matrix product, bfloat16, 12 x 8", "gemm_bf16_neon.o", {"bfmmla": 24}, 384, "multiply-add", 40, "micro_12x2_bf16_neon"
    ),
    Loop(
        "matrix product, int8, sdot", "gemm_int8_dotprod.o", {"sdot": 24}, 384, "multiply-add", 38, "micro_12x2_int8_dotprod"
    ),
    Loop(
        "matrix product, int8, usmmla",
        "gemm_int8_i8mm.o",
        {"usmmla": 24},
        768,
        "multiply-add",
        56,
        "micro_12x2_int8_i8mm",
        gcc_alone=True,
    ),
    Loop("attention, float32, 8 x 8, Q K^T", "attention_neon.o", {"fmla": 16}, 64, "multiply-add", 32, "mm_dot"),
    Loop("attention, float32, 8 x 8, P V", "attention_neon.o", {"fmla": 16}, 64, "multiply-add", 32, "mm_outer_scaled"),
    Loop("decoding, NF4 x float32, 1 token", "gemv_neon.o", {"fmla": 8, "fmul": 1, "tbl": 8}, 32, "weight", 56),
    Loop("decoding, NF4 x float32, 4 tokens", "gemv_neon.o", {"fmla": 32, "fmul": 4, "tbl": 8}, 128, "multiply-add", 108),
    Loop("decoding, NF4 x bfloat16, 1 token", "gemv_bf16_neon.o", {"bfdot": 4, "fmla": 1, "tbl": 4}, 32, "weight", 32),
    Loop(
        "decoding, NF4 x bfloat16, 8 tokens", "gemv_bf16_neon.o", {"bfdot": 32, "fmla": 8, "tbl": 4}, 256, "multiply-add", 112
    ),
)
PRODUCTS = ("fmla", "fmul", "bfdot", "bfmmla", "sdot", "usmmla", "tbl")


def functions(listing):
    """(object, function) to [(address, mnemonic, operands)]."""
    found, member, current = {}, "", None
    for line in listing.splitlines():
        if ":     file format" in line:
            member = line.split(":")[0]
        elif match := FUNCTION.match(line):
            current = found.setdefault((member, match.group(1)), [])
        elif current is not None and (match := INSTRUCTION.match(line)):
            current.append((int(match.group(1), 16), match.group(2), match.group(3)))
    return found


def inner_loops(code):
    """Instructions of every backward branch's range that holds no smaller such range."""
    ranges = []
    for address, mnemonic, operands in code:
        target = re.search(r"\b(?:0x)?([0-9a-f]+) <", operands)
        if mnemonic[0] in "bct" and target and code[0][0] <= int(target.group(1), 16) <= address:
            ranges.append((int(target.group(1), 16), address))
    bodies = [[i for i in code if begin <= i[0] <= end] for begin, end in ranges]
    return [b for b in bodies if not any(o is not b and set(o) < set(b) for o in bodies)]


def bodies_of(loop, found):
    """The loops of the code that are this one."""
    for (member, function), code in found.items():
        if member == loop.object and function.partition(".")[0].startswith(loop.function):
            for body in inner_loops(code):
                counts = Counter(mnemonic for _, mnemonic, _ in body)
                if all(counts[name] == loop.holds.get(name, 0) for name in PRODUCTS):
                    yield body


def errors_of(library, loop, found):
    """One line for what is wrong with a loop; says how long it is."""
    bodies = list(bodies_of(loop, found))
    if loop.gcc_alone and not any(member == loop.object for member, _ in found):
        return []
    if not bodies:
        return [f"{library}: {loop.what}: expected a loop of {loop.holds}, got none"]
    length = min(map(len, bodies))
    print(f"{loop.what:36} {length:4} instructions, {length / loop.work:.3f} a {loop.unit} (budget {loop.budget})")
    wrong = (
        [f"{library}: {loop.what}: expected at most {loop.budget} instructions, got {length}"] if length > loop.budget else []
    )
    shortest = min(bodies, key=len)
    spills = [f"{m} {o}" for _, m, o in shortest if STACK.search(o) and VECTOR.search(o)]
    return wrong + [f"{library}: {loop.what}: {spill}: the loop keeps a vector on the stack" for spill in spills]


def main():
    """Prints what it found and returns the exit status."""
    objdump = next(filter(shutil.which, ("aarch64-linux-gnu-objdump", "llvm-objdump")), None)
    libraries = [Path(name) for name in sys.argv[1:] if Path(name).is_file()]
    if not objdump or not libraries:
        print("lint_arm_loops: skipped, no objdump for aarch64 (Debian: binutils-aarch64-linux-gnu) or no library")
        return 0
    wrong = []
    for library in libraries:
        print(library.parent.name)
        done = subprocess.run([objdump, "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True)
        found = functions(done.stdout)
        for loop in LOOPS:
            wrong += errors_of(library, loop, found)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
