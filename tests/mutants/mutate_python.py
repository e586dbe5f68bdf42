"""Mutate the Python tree: draw mutants, and see in a copy of the project whether the tests that run the changed line notice.

    python tests/mutants/mutate_python.py [--count 100] [--seed 1] [--workers 2] [--again]

The first run records which tests run which lines (test_map.py), which takes as long as the suite does twice. What survives is
listed in build/mutants/python/survivors.txt, without the mutants that EQUAL.md explains.
"""

from __future__ import annotations

import ast
import queue
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import test_map
from python_mutations import draw
from runner import Mutant, Sample, arguments, verdicts
from trees import BUILD, ROOT, copy_project, run

FIRST, WIDER = 60.0, 150.0  # seconds of tests before the first verdict, and before a mutant has survived


def statement_lines(source: str, line: int) -> set[int]:
    """The lines of the smallest statement around a line; of a compound one only those before its body."""
    best: set[int] = {line}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case) or not hasattr(node, "lineno"):
            continue
        body = getattr(node, "body", None)
        last = body[0].lineno - 1 if body else node.end_lineno or node.lineno
        if node.lineno <= line <= max(last, node.lineno):
            best = set(range(node.lineno, max(last, node.lineno) + 1))  # inner ones come later in the walk
    return best


def in_function(source: str, line: int) -> bool:
    """Whether a line runs when something is called; others run as the module is imported, by whichever test comes first."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return any(node.body[0].lineno <= line <= (node.end_lineno or line) for node in functions)


def importers(path: str) -> list[str]:
    """The modules that import one: what a table of data does wrong shows where it is used."""
    pattern = re.compile(rf"^ *from (\S*\b{Path(path).stem} import|\S+ import .*\b{Path(path).stem}\b)", re.MULTILINE)
    files = sorted((ROOT / "python/lora_c").rglob("*.py"))
    return [str(file.relative_to(ROOT)) for file in files if pattern.search(file.read_text(encoding="utf-8"))]


def files_that_name(paths: list[str]) -> set[str]:
    """The test files in which the name of one of the modules stands."""
    modules = [path.removeprefix("python/").removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in paths]
    files = (ROOT / "tests/python").glob("test_*.py")
    return {f"tests/python/{file.name}" for file in files if any(name in file.read_text(encoding="utf-8") for name in modules)}


def file_of(test: test_map.Test) -> str:
    return test.name.partition("::")[0]


class PythonSample(Sample):
    """Mutants of the Python tree."""

    folder = BUILD / "python"

    def __init__(self) -> None:
        self.tests: list[test_map.Test] = []

    def prepare(self, tree: Path) -> None:
        built = [*(ROOT / "python/lora_c").glob("_core*.so"), *(ROOT / "build/release").glob("*.so")]
        copy_project(tree, built)

    def measure(self, trees: list[Path]) -> None:
        free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for tree in trees:
            free.put(tree)
        old = test_map.stale()
        print(f"tests of {len(old)} files are recorded", flush=True)
        with ThreadPoolExecutor(len(trees)) as pool:
            list(pool.map(lambda item: test_map.make(free, *item), old.items()))
        self.tests = test_map.load()

    def tests_for(self, mutant: Mutant) -> list[test_map.Test]:
        """The tests that ran the line; where it ran as the module was imported, those that ran anything of the module or
        stand in a file that names it. Those of such files come first, then cheap ones."""
        line = int(mutant.name.split(":")[1])
        source, naming = (ROOT / mutant.path).read_text(encoding="utf-8"), files_that_name([mutant.path])
        lines = statement_lines(source, line)
        if in_function(source, line):
            found = [test for test in self.tests if test.lines.get(mutant.path, frozenset()) & lines]
        else:
            naming |= files_that_name(importers(mutant.path))
            found = [test for test in self.tests if mutant.path in test.lines or file_of(test) in naming]
        return sorted(found, key=lambda test: (file_of(test) not in naming, test.seconds))

    def test(self, mutant: Mutant, tree: Path) -> str | None:
        rest = self.tests_for(mutant)
        if not rest:
            print(f"no test runs {mutant.name}", flush=True)
        for budget in (FIRST, WIDER):
            now, rest = cut(rest, budget)
            if now and (problem := run_tests(now, tree)) is not None:
                return problem
        return None


def cut(tests: list[test_map.Test], seconds: float) -> tuple[list[test_map.Test], list[test_map.Test]]:
    """As many tests as the seconds last for, and the others."""
    total = 0.0
    for i, test in enumerate(tests):
        total += test.seconds
        if total > seconds and i:
            return tests[:i], tests[i:]
    return tests, []


def run_tests(tests: list[test_map.Test], tree: Path) -> str | None:
    listed = tree.parent / f"{tree.name}.tests"
    listed.write_text("".join(f"{test.name}\n" for test in tests), encoding="utf-8")
    log = tree.parent / f"{tree.name}.log"
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", f"@{listed}"]
    problem = run(command, tree, 60 + 10 * sum(test.seconds for test in tests), log)
    if problem is None:
        return None
    failed = [
        text for text in log.read_text(encoding="utf-8", errors="replace").splitlines() if text.startswith(("FAILED", "ERROR"))
    ]
    return f"{problem}: {failed[0][:150]}" if failed else problem


if __name__ == "__main__":
    sys.exit(verdicts(PythonSample(), draw, arguments(__doc__, count=100)))
