"""Builds the C library and its checks with every compiler that is here, warnings being errors, and compares what they compute.

Usage: python tests/compilers/check_compilers.py [--list] [--arm] [NAME ...]     (make check-compilers, make check-arm)

GCC from 10 on, Clang from 14 on and zig's (`zig`, or PyPI's ziglang in this Python); for aarch64 Debian's GCC, the newest
Clang with its libraries and zig's again, whose checks run under qemu-aarch64-static where that is. A compiler builds below
build/compilers/NAME. Each must keep the accumulators of x86's products in registers (tests/lint/lint_spills.py; of aarch64:
lint_arm_loops.py) and pass the C checks FAMILIES, and compilers of one architecture must give the same bits in them, on each
rung and with all operands, as far as both compute a result. With --arm: the compilers for aarch64 alone, what is
missing for them in words, and with the first of them every family of checks as each of CPUS, which must give the same bits as
far as both have the operands; and how long families took.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compilers.checks import Family, Hashes, all_hashes, beside, differences, every_family, fast_unlike_exact, run_families

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
    if machine != ARM and shutil.which(f"{ARM}-linux-gnu-gcc"):
        found.append(Compiler(f"gcc-{ARM}", f"{ARM}-linux-gnu-gcc", ARM, f"{ARM}-linux-gnu-ar", emulator))
        if newest := [name for name in CLANG if shutil.which(name)][-1:]:
            found.append(
                Compiler(f"clang-{ARM}", f"{newest[0]} --target={ARM}-linux-gnu", ARM, f"{ARM}-linux-gnu-ar", emulator)
            )
    if zig():
        found.append(Compiler("zig", f"{zig()} cc -target {machine}-linux-gnu.2.28", machine, f"{zig()} ar"))
        if machine != ARM:
            command = f"{zig()} cc -target {ARM}-linux-gnu.2.28"
            found.append(Compiler(f"zig-{ARM}", command, ARM, f"{zig()} ar", emulator, libgcc()))
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


def check(compiler: Compiler, names: list[str], cpu: str | None = None) -> list[Family]:
    """Run families of the checks of a compiler: natively one by one, else side by side as this CPU of the emulator."""
    if cpu is None:
        return run_families([f"{compiler.build}/check"], names, at_once=1, emulated=False)
    emulator = [compiler.runner[0], "-cpu", cpu, *compiler.runner[1:]]
    return run_families([*emulator, f"{compiler.build}/check"], names, at_once=os.cpu_count() or 1, emulated=True)


def tell(ran: list[Family], seconds: float, also: str) -> None:
    """What the families of a compiler or a CPU came to, and how long each took where that is long."""
    failed = [family.failure for family in ran if family.failure is not None]
    passed = sum(family.passed for family in ran)
    print("\n".join([f"{'':12} {passed} passed, {len(failed)} families failed ({seconds:.0f} s){also}", *failed]), flush=True)
    slowest = sorted((family for family in ran if family.seconds >= 5), key=lambda family: -family.seconds)
    if slowest:
        print(f"{'':12} seconds: {', '.join(f'{family.name} {family.seconds:.0f}' for family in slowest)}", flush=True)


def check_as_every_cpu(
    compiler: Compiler, names: list[str], cpus: list[str | None], like: tuple[str, Hashes] | None
) -> tuple[int, Hashes]:
    """The families as each CPU, whose bits must be those of the first one as far as both have the operands, and those of the
    first one must be another compiler's. How many fail or compute other bits, and what the first one computed."""
    wrong, first = 0, {}
    for cpu in cpus:
        start = time.perf_counter()
        ran = check(compiler, names, cpu)
        here = all_hashes(ran)
        other, also = fast_unlike_exact(here), f" as {cpu}" if cpu else ""
        if like:
            known = {key: value for key, value in like[1].items() if key.split()[0] in names}
            other += differences(here, known)
            also += f", {beside(here, known, like[0])}"
        wrong += sum(family.failure is not None for family in ran) + bool(other)
        tell(ran, time.perf_counter() - start, also)
        print(*other, sep="\n", end="\n" if other else "", flush=True)
        if cpu == cpus[0]:
            first, like = here, (str(cpu), here)
    return wrong, first


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
    if args.arm:
        for line in missing_for_arm():
            print(line, flush=True)
    if unknown := sorted({*args.names} - {compiler.name for compiler in chosen}):
        parser.error(f"{unknown[0]}: expected one of {', '.join(c.name for c in here)}, got no such compiler")
    first: dict[str, tuple[str, Hashes]] = {}
    wrong = 0
    for compiler in chosen:
        print(f"{compiler.name:12} {compiler.version()}", flush=True)
        if args.list:
            continue
        start = time.perf_counter()
        failure = build(compiler)
        if failure is None and compiler.machine != ARM:
            failure = spills(compiler)
        if failure is not None:
            wrong += 1
            print(failure, flush=True)
            continue
        print(f"{'':12} builds ({time.perf_counter() - start:.0f} s)", flush=True)
        if not runs(compiler):
            print(f"{'':12} its checks are not run: no qemu-aarch64-static, or nothing in {ARM_LIBRARIES}")
            continue
        whole = args.arm and compiler.machine not in first
        cpus = (CPUS if whole else CPUS[:1]) if compiler.runner else [None]
        names = every_family() if whole else FAMILIES
        failed, hashes = check_as_every_cpu(compiler, names, cpus, first.get(compiler.machine))
        wrong += failed
        first.setdefault(compiler.machine, (compiler.name, hashes))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
