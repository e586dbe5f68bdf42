"""Compiles the CUDA plug-in: liblora_c_cuda.so, beside the extension module. `pip install` and `make cuda` call it.

Usage: python tools/build_cuda.py OUTPUT [--archs 80,90a] [--build-dir build/cuda]

Needs nvcc of CUDA 13 (NVCC, CUDA_HOME or the PATH say where) and the C++ compiler that it calls; no GPU, no driver, no
library of NVIDIA's beside the run-time library, which is linked statically, as are those of C++ where they can be.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "liblora_c_cuda.so"
LEAST_NVCC = 13
# Turing, Ampere, Ada, Hopper, Blackwell; PTX of the last for what comes after.
EVERY_ARCH = ("75", "80", "86", "89", "90a", "100", "120")
PTX_ARCH = "120"
# -fmad=false: as on the CPU, multiplications and additions are rounded each unless a fused one is asked for by name.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fmad=false",
    "-Werror",
    "all-warnings",
    "-Xcompiler",
    "-fPIC,-fvisibility=hidden,-Wall,-Wextra",
)
C_FLAGS = ("-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", "-pthread")
# Parts of the core that the plug-in has copies of.
CORE = (
    "base/alloc.c",
    "base/memory_left.c",
    "base/os_posix_memory.c",
    "base/status.c",
    "format/dynamic_map.c",
    "format/ggml.c",
    "format/nested.c",
    "kernels/dynamic_search.c",
)
CORE += ("format/nf4.c",)


class BuildError(Exception):
    """The plug-in cannot be built here; the message says why and what helps."""


def find_nvcc() -> str:
    """Return the path of nvcc 13 or later.

    Raises
    ------
    BuildError
        There is none.
    """
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    named = [os.environ["NVCC"]] if os.environ.get("NVCC") else [str(Path(home, "bin/nvcc")) for home in homes] + ["nvcc"]
    nvcc = next((found for name in named if (found := shutil.which(name))), None)
    if nvcc is None:
        raise BuildError("expected nvcc of CUDA 13, got none; install the CUDA toolkit, or name its folder in CUDA_HOME")
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"release (\d+)\.(\d+)", said)
    if version is None or int(version[1]) < LEAST_NVCC:
        got = f"{version[1]}.{version[2]}" if version else "one without a version"
        raise BuildError(f"expected nvcc of CUDA 13 or later, got {got} ({nvcc}); name a newer one in CUDA_HOME")
    return nvcc


def toolkit_include(nvcc: str) -> Path:
    """Return the folder of cuda_runtime_api.h."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    said = subprocess.run(
        [nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null"], capture_output=True, text=True, check=False
    ).stderr
    homes += [Path(found) for found in re.findall(r"^#\$ TOP=(.*)$", said, re.MULTILINE)]
    homes += [Path(nvcc).resolve().parent.parent, Path("/usr/local/cuda")]
    for home in homes:
        if (home / "include/cuda_runtime_api.h").is_file():
            return home / "include"
    raise BuildError(f"expected cuda_runtime_api.h beside {nvcc}, got none; name the toolkit's folder in CUDA_HOME")


def present_archs() -> list[str]:
    """Return the architectures of the GPUs of this machine, as nvidia-smi lists them."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = {line.strip().replace(".", "") for line in said.splitlines() if re.fullmatch(r"\d+\.\d+", line.strip())}
    return sorted("90a" if arch == "90" else arch for arch in found)


def _gencode(archs: list[str]) -> list[str]:
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return flags + ([f"-gencode=arch=compute_{PTX_ARCH},code=compute_{PTX_ARCH}"] if PTX_ARCH in archs else [])


def _c_compiler() -> list[str]:
    return shlex.split(os.environ.get("CC") or "cc")  # "zig cc" is two words


def _newest(*suffixes: str) -> float:
    return max(path.stat().st_mtime for path in (ROOT / "lora_c").rglob("*") if path.suffix in suffixes)


def _compile(command: list[str], source: Path, out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_file() and out.stat().st_mtime > max(source.stat().st_mtime, _newest(".h", ".cuh")):
        return out
    done = subprocess.run([*command, "-c", str(source), "-o", str(out)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"expected {source.name} to compile, got\n{done.stderr or done.stdout}")
    return out


def _link(command: list[str], what: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"expected {what} to link, got\n{done.stderr or done.stdout}")


def build(output: Path, archs: list[str], build_dir: Path) -> None:
    """Write the plug-in for these architectures.

    Raises
    ------
    BuildError
        There is no nvcc, or it refuses something.
    """
    nvcc = find_nvcc()
    includes = ["-I.", "-Ilora_c/include"]
    device = [nvcc, *FLAGS, *includes, *_gencode(archs)]
    host = [*_c_compiler(), *C_FLAGS, *includes, "-isystem", str(toolkit_include(nvcc))]
    folder = build_dir / "-".join(archs)
    sources = [(device, path) for path in sorted((ROOT / "lora_c/cuda").glob("*.cu"))]
    sources += [(host, path) for path in sorted((ROOT / "lora_c/cuda").glob("*.c"))]
    sources += [(host, ROOT / "lora_c" / name) for name in CORE]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda s: _compile(s[0], s[1], folder / (s[1].name + ".o")), sources))
    output.parent.mkdir(parents=True, exist_ok=True)
    link = [nvcc, "-shared", "-cudart", "static", *map(str, objects), "-o", str(output), "-lm", "-ldl"]
    link += [
        "-Xlinker",
        "-z,defs",
        "-Xlinker",
        f"--version-script={ROOT / 'lora_c/cuda/exported.map'}",
        "-Xlinker",
        "--strip-all",
    ]
    try:
        _link([*link, "-Xcompiler", "-static-libstdc++,-static-libgcc"], "the plug-in")
    except BuildError:  # where the compiler came without them; machines that run it need them then
        _link(link, "the plug-in")


def build_program(source: Path, output: Path, archs: list[str], build_dir: Path) -> None:
    """Write a program of one .cu file, which may call what lora_c/cuda/api.h lists.

    Raises
    ------
    BuildError
        There is no nvcc, or it refuses something.
    """
    nvcc = find_nvcc()
    includes = ["-I.", "-Ilora_c/include"]
    host = [*_c_compiler(), *C_FLAGS, *includes, "-isystem", str(toolkit_include(nvcc))]
    folder = build_dir / "-".join(archs)
    core = [ROOT / "lora_c/cuda/cudart.c", ROOT / "lora_c/cuda/find_cublaslt.c", *(ROOT / "lora_c" / name for name in CORE)]
    objects = [_compile([nvcc, *FLAGS, *includes, *_gencode(archs)], source, folder / (source.name + ".o"))]
    objects += [_compile(host, path, folder / (path.name + ".o")) for path in core]
    output.parent.mkdir(parents=True, exist_ok=True)
    link = [nvcc, "-cudart", "static", *map(str, objects), "-o", str(output), "-lm", "-ldl"]
    _link(link, output.name)


def asked_archs(asked: str) -> list[str]:
    """Return the architectures that a value of LORA_C_CUDA means.

    Raises
    ------
    BuildError
        It means none.
    """
    if asked in ("auto", "0", "1"):
        return {"auto": present_archs, "0": list, "1": lambda: list(EVERY_ARCH)}[asked]()
    archs = [arch.strip() for arch in asked.split(",")]
    if not set(archs) <= set(EVERY_ARCH):
        raise BuildError(f"LORA_C_CUDA: expected auto, 0, 1, or some of {','.join(EVERY_ARCH)}, got {asked!r}")
    return [arch for arch in EVERY_ARCH if arch in archs]


def check_as_asked() -> None:
    """Look whether build_as_asked can begin.

    Raises
    ------
    BuildError
        As from build_as_asked, as far as that is known before anything is compiled.
    """
    asked = os.environ.get("LORA_C_CUDA") or "auto"
    if asked != "auto" and asked_archs(asked):
        find_nvcc()


def build_as_asked(output: Path, build_dir: Path) -> None:
    """Build what the environment variable LORA_C_CUDA asks for.

    "auto" (the default): for the GPUs that are seen, nothing where there is none; "1": for every architecture; "86,89": for
    these; "0": nothing.

    Raises
    ------
    BuildError
        It has another value, or what was asked for by "1" or by name cannot be built.
    """
    asked = os.environ.get("LORA_C_CUDA") or "auto"
    archs = asked_archs(asked)
    if not archs:
        return
    try:
        build(output, archs, build_dir)
    except BuildError as error:
        if asked != "auto":
            raise
        print(f"lora-c: the CUDA plug-in is not built: {error}", file=sys.stderr)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--archs", default=",".join(EVERY_ARCH))
    parser.add_argument("--build-dir", type=Path, default=ROOT / "build/cuda")
    args = parser.parse_args()
    try:
        build(args.output.resolve(), args.archs.split(","), args.build_dir.resolve())
    except BuildError as error:
        sys.exit(f"lora-c: {error}")


if __name__ == "__main__":
    main()
