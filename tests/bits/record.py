"""Record or compare the digests of results.

    python tests/bits/record.py [--write] [--threads 1,2,3,4] [--device NAME] [rung/operands …]

A file per rung and operands of its products lies in `digests/`. What changes bits on purpose writes them anew and says why in
its commit; everything else must leave them as they are, with any number of threads.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bits.cases import Results, digests

from lora_c import _core

FOLDER = Path(__file__).parent / "digests"
# "exact" is every rung's own float32 arithmetic; so is "int8" but for products with base weights, which have the same bits on
# all of them; the others are operands of fast products.
KERNELS = (
    "ref/exact", "portable/exact", "avx2/exact", "avx512/exact", "avx512/bfloat16", "avx512/int16",
    "portable/int8", "avx2/int8", "avx512/int8", "neon/exact", "neon/bfloat16", "neon/int8",
)  # fmt: skip
# The cases of a rung that is run under an emulator; every case of the others.
EMULATED = {"neon": ("llama/float32", "llama/nf4", "gemma2/bfloat16", "gpt2/float32", "phi3/float32")}


def built_with() -> dict[str, str]:
    """What else the bits depend on: sines and exponentials of the C library, and the machine."""
    return {"machine": platform.machine(), "libc": " ".join(platform.libc_ver())}


def missing(kernels: str) -> str | None:
    """Why these kernels cannot be chosen here; None where they can."""
    try:
        with chosen(kernels):
            return None
    except (NotImplementedError, ValueError) as error:  # this CPU, this architecture
        return str(error)


def belongs(kernels: str, case: str) -> bool:
    """Whether a case is recorded for these kernels."""
    return case in EMULATED.get(kernels.partition("/")[0], (case,))


@contextmanager
def chosen(kernels: str, threads: int | None = None) -> Iterator[None]:
    """Use a rung and operands while the block runs."""
    rung, operands = kernels.split("/")
    before = _core.get_isa(), _core.get_precision(), _core.get_num_threads(), _core.get_fast_operands()
    try:
        _core.set_isa(rung)
        if operands != "exact":
            _core.set_fast_operands("float32" if operands == "int8" else operands)
        _core.set_precision(operands if operands in ("exact", "int8") else "fast")
        if threads is not None:
            _core.set_num_threads(threads)
        yield
    finally:
        _core.set_isa(before[0])
        _core.set_fast_operands(before[3])
        _core.set_precision(before[1])
        _core.set_num_threads(before[2])


def file_of(kernels: str) -> Path:
    return FOLDER / f"{kernels.replace('/', '-')}.json"


def recorded(kernels: str) -> Results:
    values = json.loads(file_of(kernels).read_text(encoding="utf-8"))
    return {f"{case}/{part}": value for case, parts in values["digests"].items() for part, value in parts.items()}


def write(kernels: str, results: Results) -> None:
    nested: dict[str, dict[str, str]] = {}
    for name, value in results.items():
        case, _, part = name.rpartition("/")
        nested.setdefault(case, {})[part] = value
    FOLDER.mkdir(exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(case)}: {json.dumps(parts)}" for case, parts in nested.items())
    text = f'{{"built_with": {json.dumps(built_with())}, "digests": {{\n{lines}\n}}}}\n'
    file_of(kernels).write_text(text, encoding="utf-8")


def built_otherwise(kernels: str) -> str | None:
    """How the record was made elsewhere, where it says nothing of this machine's bits."""
    found = json.loads(file_of(kernels).read_text(encoding="utf-8"))["built_with"]
    return None if found == built_with() else f"recorded with {found}, this is {built_with()}"


def differences(kernels: str, results: Results, whole: bool = True) -> list[str]:
    """The names whose digests are not the recorded ones; whole: results has every case."""
    expected = recorded(kernels)
    names = {*expected, *results} if whole else results
    return sorted(name for name in names if expected.get(name) != results.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kernels", nargs="*", default=KERNELS)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--threads", default="1", help="numbers of threads, separated by commas")
    parser.add_argument("--device", default="cpu", help="where the models are; what is recorded is the CPU's")
    args = parser.parse_args()
    if args.write and args.device != "cpu":
        parser.error("--write: expected --device cpu")
    wrong = 0
    for kernels in args.kernels:
        if (reason := missing(kernels)) is not None:
            print(f"{kernels}: left out: {reason}")
            continue
        for threads in map(int, args.threads.split(",")):
            start = time.perf_counter()
            with chosen(kernels, threads):
                results = digests(lambda case, kernels=kernels: belongs(kernels, case), args.device)
            if args.write:
                write(kernels, results)
            found = differences(kernels, results)
            wrong += len(found)
            taken = time.perf_counter() - start
            print(
                f"{kernels}, {args.device}, {threads} threads: {len(results)} digests, {len(found)} differ, {taken:.1f} s",
                *found[:20],
                sep="\n  ",
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
