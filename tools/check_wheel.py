"""Tries the lora_c that is installed in this environment as a stranger would: without the sources, without a compiler.

Usage: python tools/check_wheel.py [--only import,demo,generate,tests]     (a free-threaded Python: import,threads)

Of the Python suite runs what tests/python/wheel_subset.txt names (it needs pytest, pytest-timeout, packaging and safetensors),
without a GIL what free_threaded_subset.txt names (it needs pytest, pytest-timeout and ml_dtypes).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUBSETS = ROOT / "tests" / "python"
IMPORT = """
import lora_c, numpy, pathlib, sys
where = pathlib.Path(lora_c._core.__file__).resolve()
assert "site-packages" in where.parts or where.is_relative_to(sys.argv[1]), f"expected an installed package, got {where}"
w = lora_c.NF4Tensor.quantize(numpy.ones((8, 64), numpy.float32))
assert (w.dequantize() == 1).all()
print(where.name, lora_c.get_isa(), "of", lora_c.supported_isas(), "with", lora_c.get_num_threads(), "threads")
"""


def python(folder: Path, *arguments: str) -> None:
    """Run this interpreter in an empty folder, where nothing is found but what is installed."""
    environment = {**os.environ, "PATH": str(folder), "HF_HUB_OFFLINE": "1"}  # no compiler, no network
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=True)


def try_import(folder: Path) -> None:
    python(folder, "-c", IMPORT, os.environ.get("PYTHONPATH", str(folder)))


def try_demo(folder: Path) -> None:
    python(folder, "-m", "lora_c", "demo", "--short", "--out", "demo")


def try_generate(folder: Path) -> None:
    python(folder, "-m", "lora_c", "generate", "--model", "demo", "--max-new-tokens", "16", "Once upon a time")


def run_tests(folder: Path, subset: str, *options: str) -> None:
    lines = (SUBSETS / subset).read_text(encoding="utf-8").splitlines()
    chosen = [f"{ROOT}/{line}" for line in lines if line and not line.startswith("#")]
    config = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    python(folder, *options, "-m", "pytest", *config, *chosen)


def try_tests(folder: Path) -> None:
    run_tests(folder, "wheel_subset.txt")


def try_threads(folder: Path) -> None:
    run_tests(folder, "free_threaded_subset.txt", "-X", "gil=0")


TRIES: dict[str, Callable[[Path], None]] = {
    "import": try_import,
    "demo": try_demo,
    "generate": try_generate,
    "tests": try_tests,
    "threads": try_threads,
}
USUAL = "import,threads" if sysconfig.get_config_var("Py_GIL_DISABLED") else "import,demo,generate,tests"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=USUAL, help="what to try, parted by commas")
    for name in parser.parse_args().only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            TRIES[name](Path(folder))
        print(f"== {name}: passed in {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
