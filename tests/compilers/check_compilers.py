"""Builds the C library and its checks with every compiler that is here, warnings being errors, and compares what they compute.

Usage: python tests/compilers/check_compilers.py [--list] [--arm] [NAME ...]     (make check-compilers, make check-arm)

GCC from 10 on, Clang from 14 on and zig's (`zig`, or PyPI's ziglang in this Python); for aarch64 Debian's GCC and zig's again,
whose checks run under qemu-aarch64-static where that is, as each of CPUS. A compiler builds below build/compilers/NAME.
Each must keep the accumulators of x86's products in registers (tests/lint/lint_spills.py; of aarch64: lint_arm_loops.py) and
pass the C checks FAMILIES, and compilers of one architecture must give the same bits in them, on each rung and with
all operands, and so must the CPUs, as far as both compute a result. With --arm: the compilers for aarch64 alone, what is
missing for them in words, and every family of checks but NOT_EMULATED.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = [
    "base",
    "convert",
    "nf4",
    "ggml",
    "gemm",
    "gemm_small",
    "gemm_int8",
    "few_int8",
    "gemv",
    "linear",
    "linear_bound",
    "merge_bound",
    "low_rank_sums",
    "rowwise",
    "nn",
]
FAMILIES += ["optim", "optim_kernels", "head", "values", "attention", "attention_exp", "backend", "device_rows"]
FAMILIES += ["device_linear", "device_head", "decoder"]
NOT_EMULATED = {
    "decoder": "minutes there, and once all memory of the machine",
    "profile": "it compares the speed of multiply-adds with that of real CPUs",
}
GCC = ["gcc", *(f"gcc-{version}" for version in range(10, 20))]
CLANG = ["clang", *(f"clang-{version}" for version in range(14, 30))]  # 13 lacks -falign-loops
ARM = "aarch64"
ARM_LIBRARIES = "/usr/aarch64-linux-gnu"  # Debian's libc6-arm64-cross
CPUS = ["max", "neoverse-n1", "cortex-a72"]  # of the emulator: with bfloat16, armv8.2-a without, armv8-a


@dataclass(frozen=True)
class Compiler:
    """A C compiler, and how to run what it makes."""

    name: str
    command: str
    machine: str
    archiver: str = "ar"
    runner: tuple[str, ...] = ()
    libraries: str = ""

    @property
    def build(self) -> str:
        return f"build/compilers/{self.name}"

    def version(self) -> str:
        """The first line that it says of itself."""
        said = subprocess.run([*self.command.split(), "--version"], capture_output=True, text=True, check=False).stdout
        return said.partition("\n")[0]


def zig() -> str | None:
    """The command of zig, or None."""
    if shutil.which("zig"):
        return "zig"
    return f"{sys.executable} -m ziglang" if find_spec("ziglang") else None


def libgcc() -> str:
    """GCC's library for aarch64, where it is: zig's own, which a check with long double needs, has another exp and log."""
    if not shutil.which(f"{ARM}-linux-gnu-gcc"):
        return ""
    command = [f"{ARM}-linux-gnu-gcc", "-print-libgcc-file-name"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def compilers() -> list[Compiler]:
    """Every compiler of this machine, once where it has several names."""
    machine, found, seen = platform.machine(), [], set()
    for name in GCC + CLANG:
        path = shutil.which(name)
        if path and os.path.realpath(path) not in seen:
            seen.add(os.path.realpath(path))
            found.append(Compiler(name, name, machine))
    emulator = (str(shutil.which("qemu-aarch64-static")), "-L", ARM_LIBRARIES)
    if zig():
        found.append(Compiler("zig", f"{zig()} cc -target {machine}-linux-gnu.2.28", machine, f"{zig()} ar"))
        if machine != ARM:
            command = f"{zig()} cc -target {ARM}-linux-gnu.2.28"
            found.append(Compiler(f"zig-{ARM}", command, ARM, f"{zig()} ar", emulator, libgcc()))
    if machine != ARM and shutil.which(f"{ARM}-linux-gnu-gcc"):
        found.append(Compiler(f"gcc-{ARM}", f"{ARM}-linux-gnu-gcc", ARM, f"{ARM}-linux-gnu-ar", emulator))
    return found


def runs(compiler: Compiler) -> bool:
    """Whether this machine can run what the compiler makes."""
    return not compiler.runner or (Path(compiler.runner[0]).is_file() and Path(ARM_LIBRARIES).is_dir())


def build(compiler: Compiler) -> str | None:
    """Compile and link the checks; what was said where that fails."""
    targets = [f"{compiler.build}/{name}" for name in ("check", "liblora_c_fake.so", "liblora_c_other_abi.so")]
    command = ["make", "-s", f"CC={compiler.command}", f"AR={compiler.archiver}", f"BUILD={compiler.build}"]
    command += [f"LDLIBS={compiler.libraries}", *targets]
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.stdout if done.returncode else None


def spills(compiler: Compiler) -> str | None:
    """What is said of loops that keep on the stack what they compute with: the right product, at a third of the speed."""
    command = [sys.executable, "tests/lint/lint_spills.py", "--tiles", f"{compiler.build}/liblora_c.a"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else None


def every_family() -> list[str]:
    """The names that the checks take."""
    text = (ROOT / "tests/c/check_main.c").read_text(encoding="utf-8")
    return re.findall(r'\{"(\w+)", check_\w+\}', text)


def check(compiler: Compiler, families: list[str], cpu: str | None = None) -> tuple[str | None, dict[str, str], str]:
    """Run the families: what was said where one fails, a hash by what was computed, and the sum of the checks."""
    families = [name for name in families if not (cpu and name in NOT_EMULATED)]
    emulator = [compiler.runner[0], "-cpu", cpu, *compiler.runner[1:]] if cpu else []
    command = [*emulator, f"{compiler.build}/check", *families]
    environment = {**os.environ, "LORA_C_CHECK_HASHES": "1"}
    environment.pop("LORA_C_BACKENDS", None)  # the fake device beside the program is the only other one
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    hashes, family, last = {}, [], ""
    for line in done.stdout.splitlines():
        if line.startswith("bits "):
            family.append(line)
            continue
        last = line
        for said in family:
            what, _, value = said.removeprefix("bits ").rpartition(": ")
            number = sum(name.startswith(f"{line.split()[0]} {what} ") for name in hashes)
            hashes[f"{line.split()[0]} {what} {number}"] = value
        family = []
    return (done.stdout + done.stderr if done.returncode else None), hashes, last


def differences(hashes: dict[str, str], like: dict[str, str]) -> list[str]:
    """What was computed with other bits, or by one of the two alone."""
    return sorted(name for name in {*hashes, *like} if hashes.get(name) != like.get(name))


def check_as_other_cpus(compiler: Compiler, families: list[str], hashes: dict[str, str]) -> int:
    """The checks as every CPU but the first, which has all that the others have; how many fail or compute other bits."""
    wrong = 0
    for cpu in CPUS[1:]:
        start = time.perf_counter()
        failure, here, said = check(compiler, families, cpu)
        if failure is not None:
            wrong += 1
            print(f"{'':12} as {cpu}:\n{failure}", flush=True)
            continue
        other = differences(here, {name: hashes[name] for name in hashes if name in here})
        wrong += bool(other)
        print(
            "\n".join([f"{'':12} as {cpu}: {said} ({time.perf_counter() - start:.0f} s), {len(here)} results", *other]),
            flush=True,
        )
    return wrong


def missing_for_arm() -> list[str]:
    """What this machine would need to check aarch64 with every compiler."""
    missing = []
    if not shutil.which(f"{ARM}-linux-gnu-gcc"):
        missing.append(f"gcc-{ARM}: skipped, no {ARM}-linux-gnu-gcc (Debian: gcc-{ARM}-linux-gnu)")
    if not zig():
        missing.append(f"zig-{ARM}: skipped, no zig (PyPI: ziglang)")
    if not shutil.which("qemu-aarch64-static"):
        missing.append("nothing is run: no qemu-aarch64-static (Debian: qemu-user-static)")
    if not Path(ARM_LIBRARIES).is_dir():
        missing.append(f"nothing is run: no {ARM_LIBRARIES} (Debian: libc6-dev-arm64-cross)")
    return missing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="compilers, by the names of --list")
    parser.add_argument("--list", action="store_true", help="say which compilers are here")
    parser.add_argument("--arm", action="store_true", help="aarch64 alone, every family of checks")
    args = parser.parse_args()
    here = [compiler for compiler in compilers() if compiler.machine == ARM or not args.arm]
    chosen = [compiler for compiler in here if compiler.name in args.names or not args.names]
    families = every_family() if args.arm else FAMILIES
    if args.arm:
        print("\n".join([*missing_for_arm(), *(f"{name}: not run, {why}" for name, why in NOT_EMULATED.items())]), flush=True)
    if unknown := sorted({*args.names} - {compiler.name for compiler in chosen}):
        parser.error(f"{unknown[0]}: expected one of {', '.join(c.name for c in here)}, got no such compiler")
    first: dict[str, tuple[str, dict[str, str]]] = {}
    wrong = 0
    for compiler in chosen:
        print(f"{compiler.name:12} {compiler.version()}", flush=True)
        if args.list:
            continue
        start = time.perf_counter()
        failure = build(compiler)
        if failure is None and compiler.machine != ARM:
            failure = spills(compiler)
        if failure is None and not runs(compiler):
            print(f"{'':12} builds; its checks are not run: no qemu-aarch64-static, or nothing in {ARM_LIBRARIES}")
            continue
        hashes: dict[str, str] = {}
        said = ""
        if failure is None:
            failure, hashes, said = check(compiler, families, CPUS[0] if compiler.runner else None)
        if failure is not None:
            wrong += 1
            print(failure)
            continue
        name, like = first.setdefault(compiler.machine, (compiler.name, hashes))
        other = differences(hashes, like)
        wrong += bool(other)
        same = (
            f", {len(hashes) - len(other)} of {len(hashes)} results have the bits of {name}" if name != compiler.name else ""
        )
        print("\n".join([f"{'':12} builds; {said} ({time.perf_counter() - start:.0f} s){same}", *other]), flush=True)
        if compiler.runner:
            wrong += check_as_other_cpus(compiler, families, hashes)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
