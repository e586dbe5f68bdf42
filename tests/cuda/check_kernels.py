"""Checks what nvcc makes of the kernels, without a GPU: registers and spills against a recorded table, and the machine code.

Usage: python tests/cuda/check_kernels.py [--archs 75,80,90a] [--record] [--disassembler PATH]

Fails where a kernel spills, takes more registers than recorded (tests/cuda/kernels.json), or is not in the table; and,
with the disassembler (PyPI's nvidia-cuda-nvdisasm), where the code of a kernel lacks the instructions that its speed rests
on, or holds those that its promised bytes forbid (tests/cuda/expected_code.py).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(Path(__file__).parent)]

from code_loops import Kernel  # noqa: E402
from expected_code import BUDGETS, FORBIDDEN, REQUIRED  # noqa: E402

from build_cuda import EVERY_ARCH, FLAGS, find_nvcc  # noqa: E402

TABLE = Path(__file__).with_name("kernels.json")
ENTRY = re.compile(r"Compiling entry function '(\S+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SECTION = re.compile(r"^\s*\.section\s+\.text\.(\S+?),", re.MULTILINE)

Kernels = dict[str, dict[str, int]]


def names_of(mangled: list[str]) -> dict[str, str]:
    """Return short names of kernels: "norm_forward<4>"."""
    said = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True).stdout.splitlines()
    plain = [re.sub(r"^void ", "", re.sub(r"\((?:\w|:|<|>| |,|\(anonymous namespace\))*\)$", "", line)) for line in said]
    return dict(zip(mangled, (name.replace("(anonymous namespace)::", "") for name in plain), strict=True))


def compile_one(nvcc: str, source: Path, arch: str, folder: Path) -> tuple[Kernels, Path]:
    """Compile a file for an architecture; return what ptxas says of each of its kernels, and the binary."""
    binary = folder / f"{source.stem}-{arch}.cubin"
    command = [
        nvcc,
        *FLAGS,
        "-I.",
        "-Ilora_c/include",
        f"-arch=sm_{arch}",
        "-Xptxas",
        "-v",
        "-cubin",
        str(source),
        "-o",
        str(binary),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{source.name}, sm_{arch}: expected it to compile, got\n{done.stderr}")
    found: Kernels = {}
    for part in re.split(r"(?=ptxas info\s+: Compiling entry)", done.stderr):
        entry, frame, registers = ENTRY.search(part), FRAME.search(part), REGISTERS.search(part)
        if entry and frame and registers:
            found[entry[1]] = {"registers": int(registers[1]), "spill_bytes": int(frame[2]) + int(frame[3])}
    names = names_of(list(found)) if found else {}
    return {names[mangled]: numbers for mangled, numbers in found.items()}, binary


def disassembled(disassembler: str, binary: Path) -> dict[str, Kernel]:
    """Return the machine code of each kernel of a binary."""
    text = subprocess.run([disassembler, "-c", str(binary)], capture_output=True, text=True, check=True).stdout
    parts = SECTION.split(text)[1:]
    names = names_of(parts[::2]) if parts else {}
    return {names[mangled]: Kernel(code) for mangled, code in zip(parts[::2], parts[1::2], strict=True)}


def compare(found: dict[str, Kernels], recorded: dict[str, Kernels]) -> list[str]:
    """Return what is wrong with kernels, by architecture, beside the recorded table."""
    wrong = []
    for arch, kernels in found.items():
        for name, numbers in sorted(kernels.items()):
            if numbers["spill_bytes"]:
                wrong.append(f"sm_{arch} {name}: expected no spills, got {numbers['spill_bytes']} bytes")
            before = recorded.get(arch, {}).get(name)
            if before is None:
                wrong.append(f"sm_{arch} {name}: expected it in {TABLE.name}, got nothing; record it")
            elif numbers["registers"] > before["registers"]:
                wrong.append(f"sm_{arch} {name}: expected at most {before['registers']} registers, got {numbers['registers']}")
        for name in sorted(set(recorded.get(arch, {})) - set(kernels)):
            wrong.append(f"sm_{arch} {name}: it is in {TABLE.name}, and in no source; record the table anew")
    return wrong


def _matching(patterns: dict[str, Any], name: str) -> Any:
    return next((what for pattern, what in patterns.items() if re.fullmatch(pattern, name)), ())


def check_code(arch: str, code: dict[str, Kernel]) -> list[str]:
    """Return what the code of an architecture's kernels lacks, or has and must not have."""
    wrong = []
    for name, kernel in sorted(code.items()):
        instructions = kernel.opcodes
        for pattern in _matching(REQUIRED.get(arch, {}), name):
            if not any(re.match(pattern, instruction) for instruction in instructions):
                wrong.append(f"sm_{arch} {name}: expected an instruction {pattern}, got none")
        for pattern in _matching(FORBIDDEN, name):
            if bad := next((instruction for instruction in instructions if re.match(pattern, instruction)), None):
                wrong.append(f"sm_{arch} {name}: expected no instruction {pattern}, got {bad}")
        for budget in BUDGETS:
            if arch not in budget.archs or not re.fullmatch(budget.kernel, name):
                continue
            cost = kernel.cost(budget)
            if cost is None or cost > budget.most:
                got = "no such loop" if cost is None else f"{cost:.2f}"
                wrong.append(f"sm_{arch} {name}: expected at most {budget.most} instructions a {budget.unit}, got {got}")
    return wrong


def find_disassembler(named: str | None) -> str | None:
    """Return the path of nvdisasm: as named, on the PATH, or of the PyPI package beside this Python."""
    packages = [Path(path) / "nvidia/cu13/bin/nvdisasm" for path in sys.path]
    return named or shutil.which("nvdisasm") or next((str(path) for path in packages if path.is_file()), None)


def main() -> None:
    """Run the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", default=",".join(EVERY_ARCH))
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--disassembler")
    args = parser.parse_args()
    nvcc, archs = find_nvcc(), args.archs.split(",")
    disassembler = find_disassembler(args.disassembler)
    sources = sorted((ROOT / "lora_c/cuda").glob("*.cu"))
    found: dict[str, Kernels] = {arch: {} for arch in archs}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(source, arch) for arch in archs for source in sources]
        for (source, arch), (kernels, binary) in zip(
            jobs, pool.map(lambda j: compile_one(nvcc, *j, Path(name)), jobs), strict=True
        ):
            found[arch] |= {f"{source.name}: {kernel}": numbers for kernel, numbers in kernels.items()}
            if disassembler:
                wrong += check_code(arch, {f"{source.name}: {k}": v for k, v in disassembled(disassembler, binary).items()})
    recorded: dict[str, Kernels] = json.loads(TABLE.read_text()) if TABLE.is_file() else {}
    if args.record:
        TABLE.write_text(json.dumps(recorded | found, indent=1, sort_keys=True) + "\n")
        recorded |= found
    wrong += compare(found, recorded)
    print("\n".join(wrong), end="\n" if wrong else "")
    kernels = sum(map(len, found.values()))
    seen = "with" if disassembler else "without (nvdisasm is not installed)"
    print(f"{kernels} kernels of {len(archs)} architectures, {seen} their machine code: {len(wrong)} faults")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
