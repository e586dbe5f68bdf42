"""Read thousands of damaged files per format: every one must end in success or in one clear error (make fuzz).

Case i of a format depends on (seed, format, i) only, so a finding is repeated with --first i --cases 1. The number of the case
under way is kept in build/fuzz/<format>.current, where it survives a crash.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from formats import FORMATS, Format
from mutations import mutation_for

from lora_c import _core
from lora_c.errors import LoraCError
from lora_c.inspection import inspect_path
from lora_c.notices import LoraCWarning

KEPT = Path("build/fuzz")


@dataclass
class Report:
    """What the cases of one format ended in."""

    name: str
    accepted: int = 0
    refused: int = 0
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    growth: int = 0

    def __str__(self) -> str:
        n = self.accepted + self.refused + len(self.findings)
        return (
            f"{self.name:12} {n:7,} files: {self.refused:7,} refused, {self.accepted:6,} read, {len(self.findings)} findings, "
            f"{self.seconds:6.1f} s, memory +{self.growth >> 20} MiB"
        )


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(
    name: str, form: Format, cases: int, seed: int, seconds: float = 1e9, first: int = 0, current: Path | None = None
) -> Report:
    """Damage one file at a time; the others stay good, so that the damage is what is read."""
    report = Report(name)
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shared) as root, warnings.catch_warnings():
        warnings.simplefilter("ignore", LoraCWarning)  # a notice ends nothing
        folder = Path(root)
        form.make(folder)
        files = sorted({path for pattern in form.files for path in folder.glob(pattern) if path.is_file()})
        good = {path: path.read_bytes() for path in files}
        form.read(folder)  # the good files must be read, or nothing below would mean anything
        before, start = peak_bytes(), time.monotonic()
        for i in range(first, first + cases):
            if time.monotonic() - start > seconds:
                break
            if current is not None:
                current.write_text(f"{i}\n")
            rng = random.Random(f"{seed}/{name}/{i}")
            path = rng.choice(files)
            data = mutation_for(path.name)(good[path], rng)
            path.write_bytes(data)
            finding = outcome(form, folder, path)
            if finding is None:
                report.accepted += 1
            elif finding == "":
                report.refused += 1
            else:
                report.findings.append(f"case {i}, {path.relative_to(folder)}:\n{finding}")
                keep(name, i, path, data)
            path.write_bytes(good[path])
        report.seconds, report.growth = time.monotonic() - start, peak_bytes() - before
    return report


def outcome(form: Format, folder: Path, damaged: Path) -> str | None:
    """None: read. Empty: refused in one line. Else what happened instead. An inspection must say something about anything."""
    try:
        for path in (folder, damaged.parent, damaged):
            json.dumps(inspect_path(path).as_dict(), default=str)
    except Exception:
        return traceback.format_exc(limit=-6)
    try:
        form.read(folder)
    except LoraCError as error:
        lines = str(error).splitlines()
        fits = len(lines) == 1 and len(lines[0]) < 1000 and ("expected" in lines[0] or "got" in lines[0])
        return "" if fits else f"not one clear line: {str(error)[:600]!r}"
    except KeyboardInterrupt:
        raise
    except BaseException:  # a panic of a Rust library is no Exception
        return traceback.format_exc(limit=-6)
    return None


def keep(name: str, i: int, path: Path, data: bytes) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{name}-{i}-{path.name}").write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=f"of {', '.join(FORMATS)}; all by default")
    parser.add_argument("--cases", type=int, default=10_000, help="files per format")
    parser.add_argument("--seconds", type=float, default=1e9, help="at most this long per format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--memory", type=int, default=4096, help="MiB of address space, 0 for no limit (sanitizers)")
    options = parser.parse_args()
    _core.set_num_threads(1)  # the files are tiny: a second thread would only be waited for
    if options.memory:
        resource.setrlimit(resource.RLIMIT_AS, (options.memory << 20, options.memory << 20))
    KEPT.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in options.formats or FORMATS:
        current = KEPT / f"{name}.current"
        report = fuzz(name, FORMATS[name], options.cases, options.seed, options.seconds, options.first, current)
        current.unlink(missing_ok=True)
        print(report, flush=True)
        distinct = {text.splitlines()[-1][:60]: text for text in report.findings}
        for text in list(distinct.values())[:12]:
            print(ascii(text) if any("\ud800" <= c <= "\udfff" for c in text) else text)
        failed |= bool(report.findings)
    if not failed:
        with contextlib.suppress(OSError):  # another run is under way, or left something
            KEPT.rmdir()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
