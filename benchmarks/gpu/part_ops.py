"""Part ops: every operation on the device against the CPU, by the C checks."""

from __future__ import annotations

import os
import re
import subprocess
import time

from common import PROGRAMS, ROOT, emit, options, said_by

# What they look at is the stand-in's own.
OF_THE_SHIM = {"cuda_faults", "cuda_graphs", "device_offsets"}
TINY = ("backend", "device_memory")  # the rest takes minutes where a thread of the device is one of the host
LIMIT = 240  # seconds


def families() -> list[str]:
    """Those that `make check-cuda-c` runs on the kernels without a GPU, and whole decoders after them."""
    said = subprocess.run(["make", "-s", "list-checks"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [family for family in said.split() if family not in OF_THE_SHIM] + ["decoder"]


def main() -> None:
    """One row a family, with the first things that went wrong."""
    args = options(__doc__)
    env = os.environ | {"LORA_C_BACKENDS": args.backend}
    for family in TINY if args.tiny else families():
        begin = time.perf_counter()
        status, said = said_by([str(PROGRAMS / "check"), family], LIMIT, env)
        counts = re.search(r"^(\d+) passed, (\d+) failed$", said, re.MULTILINE)
        passed, failed = (int(counts[1]), int(counts[2])) if counts else (0, 0)
        wrong = said.strip().splitlines()[:20] if status != 0 else []
        about = "took too long" if status is None else f"status {status}" if counts is None else ""
        emit(
            family=family, passed=passed, failed=failed, seconds=round(time.perf_counter() - begin, 1), about=about,
            wrong=wrong, ok=status == 0,
        )  # fmt: skip


if __name__ == "__main__":
    main()
