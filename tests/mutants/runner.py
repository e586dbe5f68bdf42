"""What both samples of mutants share: workers with a copy of the project each, verdicts, and the report."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trees import ROOT

NOT_BUILT, IS_EQUAL = "not built", "equal"
EQUAL = ROOT / "tests" / "mutants" / "EQUAL.md"


@dataclass(frozen=True)
class Mutant:
    """One change of one file; the name says where and which."""

    name: str
    path: str
    source: Callable[[], str | None]  # None: nothing that could be tested


class Sample:
    """How the mutants of one tree are tested."""

    folder: Path

    def prepare(self, tree: Path) -> None:
        """Make a copy of the project whose tests can run."""
        raise NotImplementedError

    def measure(self, trees: list[Path]) -> None:
        """Learn what the tests cost, and that they succeed."""
        raise NotImplementedError

    def test(self, mutant: Mutant, tree: Path) -> str | None:
        """How the mutant in the tree was noticed, None where it was not, or "not built"."""
        raise NotImplementedError

    def restore(self, tree: Path) -> None:
        """Undo what building a mutant left behind; its source is the original again, with the old time."""


def arguments(description: str | None, count: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=count, help="mutants that are tested")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="go on with the last run, and test again what survived it")
    parser.add_argument("--only", default="", metavar="NAME", help="test only the mutants whose names begin like this")
    return parser.parse_args()


def equal_names() -> set[str]:
    """The mutants that EQUAL.md explains: lines that begin with their name in backquotes."""
    lines = EQUAL.read_text(encoding="utf-8").splitlines() if EQUAL.exists() else []
    return {line[3:].rpartition("`: ")[0] for line in lines if line.startswith("* `")}


class Work:
    """Mutants in the order of the draw, until enough have a verdict; what has one already is not tested."""

    def __init__(self, mutants: list[Mutant], count: int, known: dict[str, str | None], record: Path | None) -> None:
        self.mutants = iter(mutants)
        self.wanted = count
        self.results = dict(known)
        self.record = record
        self.lock = threading.Lock()

    def next(self) -> Mutant | None:
        with self.lock:
            while self.wanted > 0 and (mutant := next(self.mutants, None)) is not None:
                verdict = self.results.get(mutant.name)
                self.wanted -= verdict != NOT_BUILT
                if verdict is None:
                    return mutant
        return None

    def report(self, mutant: Mutant, verdict: str | None, seconds: float) -> None:
        with self.lock:
            self.results[mutant.name] = verdict
            if self.record is not None:  # so that an interrupted run goes on with --again
                self.record.write_text(json.dumps(self.results, indent=1), encoding="utf-8")
            if verdict == NOT_BUILT:
                self.wanted += 1
                return
            said = "SURVIVED" if verdict is None else "killed"
            print(f"{self.wanted:4} left, {said} {seconds:6.1f} s  {mutant.name}  {verdict or ''}", flush=True)


def worker(sample: Sample, work: Work, tree: Path) -> None:
    while (mutant := work.next()) is not None:
        target = tree / mutant.path
        original, times = target.read_bytes(), target.stat()
        start = time.perf_counter()
        source = mutant.source()
        verdict: str | None = NOT_BUILT
        try:
            if source is not None:
                target.write_text(source, encoding="utf-8")
                verdict = sample.test(mutant, tree)
        finally:
            target.write_bytes(original)
            os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
            sample.restore(tree)
        work.report(mutant, verdict, time.perf_counter() - start)


def run_all(sample: Sample, work: Work, workers: int) -> None:
    trees = [sample.folder / str(i) for i in range(workers)]
    trees[0].mkdir(parents=True, exist_ok=True)
    sample.prepare(trees[0])
    for tree in trees[1:]:  # what the first has built need not be built again
        if not tree.exists():
            shutil.copytree(trees[0], tree)
        sample.prepare(tree)
    sample.measure(trees)
    in_parallel([lambda tree=tree: worker(sample, work, tree) for tree in trees])


def in_parallel(jobs: list[Callable[[], None]]) -> None:
    failures: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def verdicts(sample: Sample, draw: Callable[[int], list[Mutant]], args: argparse.Namespace) -> int:
    """Test a sample and write down what survived; the exit status is 1 where less than 92 % of what is no equal was killed."""
    start = time.perf_counter()
    sample.folder.mkdir(parents=True, exist_ok=True)
    record = sample.folder / "results.json"
    mutants = [mutant for mutant in draw(args.seed) if mutant.name.startswith(args.only)]
    known: dict[str, str | None] = json.loads(record.read_text(encoding="utf-8")) if args.again and record.exists() else {}
    known |= dict.fromkeys(equal_names() & {mutant.name for mutant in mutants}, IS_EQUAL)
    count = min(args.count, len(mutants))
    print(f"seed {args.seed}: {count} of {len(mutants)} mutants", flush=True)
    work = Work(mutants, count, known, None if args.only else record)
    run_all(sample, work, args.workers)
    tested = [mutant for mutant in mutants if work.results.get(mutant.name, "") != NOT_BUILT and mutant.name in work.results]
    return told(sample, tested[:count], work.results, time.perf_counter() - start, args.seed)


def change(mutant: Mutant) -> str:
    """The lines that a mutant changes."""
    original = (ROOT / mutant.path).read_text(encoding="utf-8").splitlines()
    lines = difflib.unified_diff(original, (mutant.source() or "").splitlines(), n=2, lineterm="")
    return "\n".join(line for line in lines if not line.startswith(("---", "+++")))


def told(sample: Sample, tested: list[Mutant], results: dict[str, str | None], seconds: float, seed: int) -> int:
    missed = [mutant for mutant in tested if results[mutant.name] is None]
    equal = sum(results[mutant.name] == IS_EQUAL for mutant in tested)
    listed = "".join(f"{mutant.name}\n{change(mutant)}\n\n" for mutant in missed)
    (sample.folder / "survivors.txt").write_text(listed, encoding="utf-8")
    killed, decided = len(tested) - len(missed) - equal, len(tested) - equal
    for mutant in missed:
        print(f"survived: {mutant.name}")
    print(f"seed {seed}: {len(tested)} mutants, {killed} killed, {len(missed)} survived, {equal} equal; "
          f"{killed / max(decided, 1):.1%} of {decided} killed, {seconds:.0f} s")  # fmt: skip
    return 0 if killed >= 0.92 * decided else 1
