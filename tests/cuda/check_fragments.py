"""Compiles check_fragments.cpp with the headers of CuTe (PyPI's nvidia-cutlass) and of CUDA, and runs it.

Usage: python tests/cuda/check_fragments.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from build_cuda import find_nvcc, toolkit_include  # noqa: E402


def main() -> None:
    """Run the check."""
    cutlass = find_spec("cutlass_library")
    if cutlass is None or cutlass.origin is None:
        sys.exit("nvidia-cutlass: expected it beside this Python, got nothing; pip install --no-deps nvidia-cutlass")
    cuda = toolkit_include(find_nvcc())
    headers = [Path(cutlass.origin).parent / "source/include", cuda, cuda / "cccl"]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "check_fragments")
        command = [os.environ.get("CXX") or "c++", "-std=c++17", "-w", "-I.", *(f"-isystem{path}" for path in headers)]
        subprocess.run([*command, "tests/cuda/check_fragments.cpp", "-o", str(program)], cwd=ROOT, check=True)
        sys.exit(subprocess.run([str(program)], check=False).returncode)


if __name__ == "__main__":
    main()
