"""Checks every launch of the C checks against the limits of every architecture, without a GPU.

Usage: python tests/cuda/check_launches.py [--computes 7.5,9.0] [FAMILY ...]

Runs the families on the shim once for each compute capability, because what is launched depends on it, and compares
threads and shared memory of each launch with what the kernel's registers (tests/cuda/kernels.json) and the GPU allow
(CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / "release"
TABLE = Path(__file__).with_name("kernels.json")
FAMILIES = ["backend", "backend_quantize", "device_steps", "device_rows", "device_narrow", "device_half", "device_optim"]
FAMILIES += ["device_linear", "device_adapters", "device_head", "attention_devices", "values", "decoder_adapters"]
FAMILIES += ["mixed_adapters", "virtual_tokens", "adapted_globals"]
REGISTERS, REGISTERS_OF_A_THREAD, REGISTER_UNIT, WARP_UNIT, THREADS = 65536, 255, 8, 4, 1024
SHARED_KIB = {"7.5": 64, "8.0": 163, "8.6": 99, "8.9": 99, "9.0": 227, "10.0": 227, "12.0": 99}
ARCHS = {"7.5": "75", "8.0": "80", "8.6": "86", "8.9": "89", "9.0": "90a", "10.0": "100", "12.0": "120"}  # in the table

Registers = dict[str, int]


@dataclass(frozen=True)
class Launch:
    """How a kernel was started."""

    kernel: str
    threads: int
    shared_bytes: int


def registers_of(arch: str) -> Registers:
    """Return the registers of a thread by kernel; of two kernels with one name the larger number."""
    found: Registers = {}
    for name, numbers in json.loads(TABLE.read_text())[arch].items():
        kernel = name.split(": ", 1)[1]
        found[kernel] = max(found.get(kernel, 0), numbers["registers"])
    return found


def wrong_with(launch: Launch, compute: str, registers: Registers) -> str | None:
    """Return what of a launch no GPU of this compute capability would do, or None."""
    said = f"{compute}: {launch.kernel} with {launch.threads} threads and {launch.shared_bytes} bytes of shared memory"
    if launch.kernel not in registers:
        return f"{said}: expected it in {TABLE.name}, got nothing"
    if launch.shared_bytes > SHARED_KIB[compute] * 1024:
        return f"{said}: expected at most {SHARED_KIB[compute]} KiB"
    if not 1 <= launch.threads <= THREADS:
        return f"{said}: expected 1 to {THREADS} threads"
    each = -(-registers[launch.kernel] // REGISTER_UNIT) * REGISTER_UNIT
    warps = -(-launch.threads // (32 * WARP_UNIT)) * WARP_UNIT
    if registers[launch.kernel] > REGISTERS_OF_A_THREAD or each * 32 * warps > REGISTERS:
        return f"{said}: expected at most {REGISTERS} registers, got {each} each"
    return None


def kernels_at(library: Path) -> dict[int, list[str]]:
    """Return the functions of a library by their offset: identical ones share theirs."""
    found: dict[int, list[str]] = {}
    function = re.compile(r"(\w+) [tT] (?:void )?(.*?)\((?:\w|:|<|>|,| |\(anonymous namespace\)|\(lora_dtype\))*\)")
    for line in subprocess.run(["nm", "-C", library], capture_output=True, text=True, check=True).stdout.splitlines():
        if match := function.fullmatch(line):
            found.setdefault(int(match[1], 16), []).append(match[2].replace("(anonymous namespace)::", ""))
    return found


def launches_of(compute: str, families: list[str]) -> set[Launch]:
    """Run families of the checks and return what they launched."""
    library = BUILT / "liblora_c_shim.so"
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "launches"
        environment = {"LORA_C_BACKENDS": str(library), "SHIM_COMPUTE": compute, "SHIM_LAUNCHES": str(rows)}
        environment["LORA_C_SHIM_THREADS"] = "1"  # one processor each
        done = subprocess.run(
            [BUILT / "check", *families], env=os.environ | environment, capture_output=True, text=True, check=False
        )
        if done.returncode not in (0, 1):  # numbers are no subject here: some are compared as 8.0 and later compute them
            sys.exit(f"{compute}: expected the checks to end, got\n{done.stdout}{done.stderr}")
        lines = rows.read_text().split()
    kernels = kernels_at(library)
    return {
        Launch(kernel, int(threads), int(shared))
        for offset, threads, shared in zip(lines[::3], lines[1::3], lines[2::3], strict=True)
        for kernel in kernels.get(int(offset, 16), [f"a kernel at {offset}"])
    }


def main() -> None:
    """Run the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--computes", default=",".join(ARCHS))
    parser.add_argument("families", nargs="*", metavar="FAMILY", default=FAMILIES)
    args = parser.parse_args()
    wrong, kernels, total = [], set(), 0
    computes = args.computes.split(",")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(partial(launches_of, families=args.families), computes))
    for compute, launches in zip(computes, found, strict=True):
        registers = registers_of(ARCHS[compute])
        wrong += [said for launch in launches if (said := wrong_with(launch, compute, registers))]
        kernels |= {launch.kernel for launch in launches}
        total += len(launches)
    print("\n".join(sorted(wrong)), end="\n" if wrong else "")
    print(f"{total} kinds of launches of {len(kernels)} kernels: {len(wrong)} beyond limits")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
