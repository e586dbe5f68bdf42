"""Part sanitizer: compute-sanitizer over every kernel at small sizes, where the machine has the tool."""

from __future__ import annotations

import os
import shutil
import time

from common import PROGRAMS, emit, options, said_by

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
WRONG = 9  # the status by which the tool says that it found something
LIMIT = 105  # seconds of a tool: all four stay below the limit of the part


def find_tool() -> str | None:
    """Return the path of compute-sanitizer, which stands beside nvcc."""
    nvcc = shutil.which(os.environ.get("NVCC", "nvcc"))
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    homes += [os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))] if nvcc else []
    folders = [os.path.join(home, part) for home in homes if home for part in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def main() -> None:
    """One row a tool, or one that says why there is none."""
    args = options(__doc__)
    tool = find_tool()
    if args.device.partition(":")[0] != "cuda":
        emit(absent=f"compute-sanitizer watches GPUs, and {args.device} is none")
        return
    if tool is None:
        emit(absent="compute-sanitizer: not on the PATH, not in CUDA_HOME, not beside nvcc")
        return
    env = os.environ | {"LORA_C_BACKENDS": args.backend}
    program = [str(PROGRAMS / "bench_device"), args.device, "tiny"]
    for name in TOOLS:
        begin = time.perf_counter()
        status, said = said_by([tool, "--tool", name, "--error-exitcode", str(WRONG), *program], LIMIT, env)
        lines = [line for line in said.splitlines() if line.startswith("=====")]
        verdict = {0: "nothing found", WRONG: "errors found", None: "took too long"}.get(status, f"status {status}")
        emit(
            tool=name, verdict=verdict, said=lines[:40], last=lines[-1:], seconds=round(time.perf_counter() - begin, 1),
            ok=status in (0, None),
        )  # fmt: skip


if __name__ == "__main__":
    main()
