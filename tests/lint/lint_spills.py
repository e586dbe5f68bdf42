"""Disassembles the kernels of the matrix product and fails when an inner loop keeps what it computes with on the stack.

Usage: python tests/lint/lint_spills.py [--tiles] LIBRARY.a
A register tile that does not fit the register file still computes the right product, at half the speed. Compilers do that
silently, so this looks at what they made: in the loops of micro-kernels any touch of the stack, in those of the products of a
few tokens (which read ahead) any vector that goes there. Says so and succeeds where there is no objdump or the library is
not for x86-64. --tiles looks at the micro-kernels of the matrix product alone, and at those of more than one accumulator: what
every compiler must do (make check-compilers). Clang keeps vectors of the products of a few tokens on the stack at GCC's speed,
and Clang 14 the operand of the smallest tile.
"""

import re
import shutil
import subprocess
import sys

FUNCTION = re.compile(r"^[0-9a-f]+ <(micro_\d+x[12]_\w+|gemv_\w+_(?:bf16|int16|int8))>:$")
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
PRODUCT = ("vfmadd", "vdpbf16ps", "vpdpwssd", "vpdpbusd")
STACK = re.compile(r"\(%r[sb]p[,)]")
VECTOR = re.compile(r"%[xyz]mm")
EXPECTED = {
    "avx2": 12,
    "avx512": 28,
    "bf16": 28 + 2,
    "int16": 28 + 1,
    "int8": 14 + 1,
    "int8_squares": 7,
}  # one per tile height and width; gemv_<weight>_<path>


def functions(listing):
    """Name to [(address, mnemonic, operands)] of every micro-kernel."""
    found, current = {}, None
    for line in listing.splitlines():
        if line.endswith(">:"):
            match = FUNCTION.match(line)
            current = found.setdefault(match.group(1), []) if match else None
        elif current is not None and (match := INSTRUCTION.match(line)):
            current.append((int(match.group(1), 16), match.group(2), match.group(3)))
    return found


def inner_loops(code):
    """Instructions of every backward jump's range that multiplies and holds no smaller such range."""
    ranges = []
    for address, mnemonic, operands in code:
        target = re.match(r"([0-9a-f]+)\b", operands)
        if mnemonic.startswith("j") and target and code[0][0] <= int(target.group(1), 16) <= address:
            ranges.append((int(target.group(1), 16), address))
    bodies = [[i for i in code if begin <= i[0] <= end] for begin, end in ranges]
    bodies = [body for body in bodies if any(i[1].startswith(PRODUCT) for i in body)]
    return [b for b in bodies if not any(o is not b and set(o) < set(b) for o in bodies)]


def products_of_few_tokens(code):
    """The inner loops over whole groups of codes: those that read ahead."""
    return [body for body in inner_loops(code) if any(i[1].startswith("prefetch") for i in body)]


def errors_of(found, tiles_alone):
    """One line for each micro-kernel that is missing, has no product loop, or spills."""
    for suffix, expected in EXPECTED.items():
        n = sum(name.endswith(f"_{suffix}") for name in found)
        if n != expected:
            yield f"{suffix}: expected {expected} micro-kernels, got {n}"
    for name, code in sorted(found.items()):
        few_tokens = name.startswith("gemv_")
        if tiles_alone and (few_tokens or name.startswith("micro_1x1_")):
            continue
        loops = products_of_few_tokens(code) if few_tokens else inner_loops(code)
        if not loops:
            yield f"{name}: expected a loop that multiplies, got none"
        for body in loops:
            for address, mnemonic, operands in body:
                if STACK.search(operands) and (VECTOR.search(operands) or not few_tokens):
                    yield f"{name}: {address:x}: {mnemonic} {operands}: the inner loop touches the stack"


def main():
    """Prints what it found and returns the exit status."""
    libraries = [name for name in sys.argv[1:] if name != "--tiles"]
    if len(libraries) != 1:
        sys.exit(__doc__)
    if shutil.which("objdump") is None:
        print("lint_spills: skipped, no objdump")
        return 0
    command = ["objdump", "-d", "--no-show-raw-insn", libraries[0]]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "file format elf64-x86-64" not in listing:
        print("lint_spills: skipped, the library is not for x86-64")
        return 0
    found = functions(listing)
    problems = list(errors_of(found, "--tiles" in sys.argv))
    print("\n".join([*problems, f"lint_spills: {len(found)} kernels, {len(problems)} problems"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
