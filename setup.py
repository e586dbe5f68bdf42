"""Builds lora_c._core and, where the environment asks for it, the CUDA plug-in; everything else stands in pyproject.toml."""

import os
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

LAYERS = ("base", "format", "kernels", "kernels/ref", "kernels/portable", "kernels/x86", "kernels/arm", "ops", "backend")
LAYERS += ("model", "optim", "comm", "bindings")
SOURCES = [str(path) for layer in LAYERS for path in sorted(Path("lora_c", layer).glob("*.c"))]
INCLUDES = [".", "lora_c/include"]
HEADERS = [str(path) for path in sorted(Path("lora_c").rglob("*.h"))]
# No -ffast-math: linking with it would turn on flush-to-zero in the whole Python process. -ffp-contract=off: the same
# source must give the same bits from every compiler; fused multiply-adds are asked for by name.
# Functions and loops begin at cache lines: where the loop of a product happened to lie cost decoding 7 % (1.1B shape, Zen 4).
FLAGS = ["-std=c11", "-O3", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra"]
FLAGS += ["-falign-functions=64", "-falign-loops=64"]
FOR_WINDOWS = sysconfig.get_platform().startswith("win")  # also from elsewhere: tools/make_wheels.py
THREADS = [] if FOR_WINDOWS else ["-pthread"]
STRIPPED = {"linux": ["-Wl,-s"], "darwin": ["-Wl,-x"]}


sys.path.insert(0, str(Path(__file__).resolve().parent / "tools"))
from build_cuda import NAME, BuildError, build_as_asked, check_as_asked  # noqa: E402


class BuildExt(build_ext):
    """Compiles the sources side by side and says what to install when there is no compiler."""

    def run(self):
        try:
            check_as_asked()  # before minutes of compiling
        except BuildError as error:
            raise SystemExit(f"lora-c: {error}") from None
        super().run()
        beside = Path(self.get_ext_fullpath("lora_c._core")).resolve()
        try:
            build_as_asked(beside.parent / NAME, Path(self.build_temp).resolve() / "cuda")
        except BuildError as error:
            raise SystemExit(f"lora-c: {error}") from None

    def build_extension(self, ext):
        if self.compiler.compiler_type == "msvc":
            raise SystemExit(
                "lora-c: expected a compiler that puts functions on instruction sets by attributes, got Microsoft's; install "
                "the wheel for Windows, which tools/make_wheels.py --target win_amd64 makes on Linux"
            )
        sanitize = os.environ.get("LORA_C_SANITIZE")
        if sanitize:
            ext.extra_compile_args += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g", "-O1"]
            ext.extra_link_args += [f"-fsanitize={sanitize}"]
        elif not (self.inplace or getattr(self, "editable_mode", False)):  # a wheel: six times the size with symbols
            ext.extra_compile_args += ["-g0"]
            ext.extra_link_args += STRIPPED.get(sys.platform, [])
        bind, library = self.compiler.compile, copy(self.compiler)
        library.set_include_dirs([])

        def compile_all(sources, *args, **kwargs):
            def compile_one(source):
                if Path(source).parts[1] == "bindings":
                    return bind([source], *args, **kwargs)
                # The library's headers alone: it is C without Python, and ccache has its objects for every interpreter.
                return library.compile([source], *args, **(kwargs | {"include_dirs": INCLUDES}))

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [o for objects in pool.map(compile_one, sources) for o in objects]

        self.compiler.compile = compile_all
        try:
            super().build_extension(ext)
        except Exception as error:
            command = getattr(self.compiler, "compiler", None)
            if command and not _found(command[0]):
                raise SystemExit(
                    f"lora-c: expected a C11 compiler, got none ({command[0]!r} is not on the PATH); "
                    "install gcc or clang (Debian: apt-get install build-essential)"
                ) from error
            raise


def _found(program):
    from shutil import which

    return which(program) is not None


setup(
    ext_modules=[
        Extension(
            "lora_c._core",
            sources=SOURCES,
            depends=HEADERS,
            include_dirs=[*INCLUDES, numpy.get_include()],
            extra_compile_args=FLAGS + THREADS,
            extra_link_args=THREADS,
            libraries=[] if FOR_WINDOWS else ["m", "dl"],
        )
    ],
    cmdclass={"build_ext": BuildExt},
)
