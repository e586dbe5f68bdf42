"""Part wrappers: each instruction that kernels use through ptx.cuh, alone, against loops over tables of the PTX ISA."""

from __future__ import annotations

import json
import os
import sys

from common import PROGRAMS, ROOT, emit, options, said_by

sys.path.insert(0, str(ROOT / "tools"))

import build_cuda  # noqa: E402

LIMIT = 120  # seconds


def main() -> None:
    """One row an instruction."""
    args = options(__doc__)
    kind = args.device.partition(":")[0]
    if kind not in ("cuda", "shim"):
        emit(absent=f"{args.device} has no kernels of CUDA")
        return
    program = PROGRAMS / ("wrappers" if kind == "shim" else "wrappers_cuda")
    if kind == "cuda":
        archs = build_cuda.present_archs()
        build_cuda.build_program(ROOT / "tests/cuda/wrappers.cu", program, archs, ROOT / "build/cuda")
    status, said = said_by([str(program)], LIMIT, dict(os.environ))
    rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    for row in rows:
        emit(**row)
    if status != 0 or not rows:
        emit(status=status, said=said.splitlines()[-20:], ok=False)


if __name__ == "__main__":
    main()
