"""Runs a part of the Python suite, and compares digests of results, as aarch64 under qemu.

Usage: python tests/compilers/check_arm_python.py [NAME ...]     (make check-arm)

Debian's Python for arm64 is unpacked below build/arm-python, with the wheels of what lora_c needs beside it; this machine's
packages stay as they are. NAME: compilers of check_compilers.py, whose libraries the extension is made of. That of the first
runs the tests of tests/python/arm_subset.txt; each must give the digests of the rung neon (tests/bits). Says what is missing,
and succeeds, where it cannot run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compilers.check_compilers import ARM, ROOT, Compiler, compilers

FOLDER = ROOT / "build" / "arm-python"
SYSTEM, WHEELS = FOLDER / "system", FOLDER / "wheels"
PACKAGES = ["python3", "libpython3-dev", "libstdc++6"]
SUBSET = ROOT / "tests/python/arm_subset.txt"
PLATFORMS = [f"{name}_{ARM}" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
FLAGS = ["-std=c11", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-pthread"]
FLAGS += ["-Wall", "-Wextra", "-Werror", f"-I{ROOT}", f"-I{ROOT}/lora_c/include"]


def run(*command: str | Path, **more: str) -> None:
    subprocess.run([str(word) for word in command], cwd=ROOT, env={**os.environ, **more}, check=True)


def unpack_system() -> None:
    """Debian's packages for arm64 and all that they need, as if nothing were installed."""
    apt = FOLDER / "apt"
    (apt / "archives/partial").mkdir(parents=True, exist_ok=True)
    (apt / "lists/partial").mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    settings = {
        "APT::Architecture": "arm64", "APT::Architectures::": "arm64", "APT::Sandbox::User": "root", "Debug::NoLocking": "1",
        "Dir::State::lists": apt / "lists", "Dir::State::status": apt / "status", "Dir::Cache::archives": apt / "archives",
        "Dir::Cache::pkgcache": "", "Dir::Cache::srcpkgcache": "",
    }  # fmt: skip
    get = ["apt-get", "-qq", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
    run(*get, "update")
    run(*get, "install", "--yes", "--no-install-recommends", "--download-only", *PACKAGES)
    for package in sorted((apt / "archives").glob("*.deb")):
        run("dpkg-deb", "--extract", package, SYSTEM)


def version() -> str:
    """Of the Python: "3.11"."""
    return os.readlink(SYSTEM / "usr/bin/python3").removeprefix("python")


def fetch_wheels() -> None:
    """What lora_c and its tests need, for that Python."""
    needed = [name for name in metadata.requires("lora_c") or [] if "extra ==" not in name]
    target = [word for platform in PLATFORMS for word in ("--platform", platform)]
    target += ["--python-version", version(), "--only-binary", ":all:", "--target", str(WHEELS)]
    needed += ["pytest", "pytest-timeout", "packaging", "safetensors"]
    run(sys.executable, "-m", "pip", "install", "--quiet", *target, *needed)


def interpreter(package: Path) -> Path:
    """A program that is that Python with the lora_c in this folder, and what it starts as sys.executable, too."""
    path = package / "python"
    path.write_text(
        f"#!/bin/sh\nexport PYTHONHOME={SYSTEM}/usr PYTHONPATH={package}:{WHEELS}\n"
        f'exec qemu-{ARM}-static -cpu max -0 "$0" -L {SYSTEM} {SYSTEM}/usr/bin/python{version()} "$@"\n',
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def build_package(compiler: Compiler) -> Path:
    """The package with an extension by this compiler; its folder."""
    folder = FOLDER / compiler.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "python/lora_c", folder / "lora_c", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    headers = [WHEELS / "numpy/_core/include", SYSTEM / f"usr/include/python{version()}", SYSTEM / "usr/include"]
    extension = folder / f"lora_c/_core.cpython-{version().replace('.', '')}-{ARM}-linux-gnu.so"
    library = ["-Wl,--whole-archive", f"{ROOT}/{compiler.build}/liblora_c.a", "-Wl,--no-whole-archive", "-lm", "-ldl"]
    found = [word for header in headers for word in ("-isystem", header)]
    sources = sorted((ROOT / "lora_c/bindings").glob("*.c"))
    run(*compiler.command.split(), *FLAGS, *found, "-shared", *sources, *library, "-o", extension)
    return folder


def missing() -> str | None:
    """Why nothing can be run here."""
    for program, of in {f"qemu-{ARM}-static": "qemu-user-static", "apt-get": "apt", "dpkg-deb": "dpkg"}.items():
        if not shutil.which(program):
            return f"no {program} (Debian: {of})"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="compilers, by the names of check_compilers.py --list")
    args = parser.parse_args()
    built = [c for c in compilers() if c.machine == ARM and c.runner and (ROOT / c.build / "liblora_c.a").is_file()]
    chosen = [compiler for compiler in built if compiler.name in args.names or not args.names]
    if (reason := missing() or (None if chosen else "no library for aarch64 in build/compilers")) is not None:
        print(f"Python for {ARM}: skipped, {reason}")
        return 0
    if not WHEELS.is_dir():
        unpack_system()
        fetch_wheels()
    wrong = 0
    for compiler in chosen:
        print(f"{compiler.name:12} Python {version()} for {ARM}", flush=True)
        python = interpreter(build_package(compiler))
        commands = [[str(ROOT / "tests/bits/record.py"), "neon/exact", "neon/bfloat16", "neon/int8"]]
        if compiler == chosen[0]:
            files = [line for line in SUBSET.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
            commands.insert(0, ["-m", "pytest", "-p", "no:cacheprovider", "--timeout", "0", "--durations", "10", *files])
        for command in commands:
            start = time.perf_counter()
            wrong += subprocess.run([python, *command], cwd=ROOT, check=False).returncode != 0
            print(f"{'':12} {time.perf_counter() - start:.0f} s", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
