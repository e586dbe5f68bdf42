"""Which tests run which lines of the package: recorded once per test file, kept until that file or the package changes."""

from __future__ import annotations

import json
import queue
import sys
from dataclasses import dataclass
from pathlib import Path

from coverage import CoverageData
from coverage.exceptions import CoverageException
from trees import BUILD, ROOT, digest, run

FOLDER = BUILD / "python" / "map"
LEFT_OUT = {"test_bits"}  # minutes, for what the C tree computes
SETTINGS = """[run]
parallel = true
source = {package}
data_file = {data}
context = ${{MUTANTS_TEST-}}
patch = _exit
sigterm = true
disable_warnings = no-data-collected, module-not-measured, couldnt-parse, no-ctracer, trace-changed, already-imported
"""


@dataclass(frozen=True)
class Test:
    """A test, and the lines of the package that it ran."""

    name: str
    seconds: float
    lines: dict[str, frozenset[int]]


def keys() -> dict[str, str]:
    """Test files with what their records depend on."""
    shared = digest([*(ROOT / "python/lora_c").rglob("*.py"), ROOT / "tests/python/conftest.py"])
    files = [path for path in sorted((ROOT / "tests/python").glob("test_*.py")) if path.stem not in LEFT_OUT]
    return {path.stem: shared + digest([path]) for path in files}


def record(name: str, key: str, tree: Path) -> None:
    """Run one test file under coverage."""
    data, settings, result = (FOLDER / f"{name}{end}" for end in (".coverage", ".ini", ".tests"))
    settings.write_text(SETTINGS.format(package=tree / "python" / "lora_c", data=data), encoding="utf-8")
    result.unlink(missing_ok=True)
    remove(data)
    command = [sys.executable, "-m", "coverage", "run", f"--rcfile={settings}", "-m", "pytest", "-p", "no:cacheprovider"]
    command += ["-p", "recorder", f"tests/python/{name}.py"]
    problem = run(
        command, tree, 1200, FOLDER / f"{name}.log", {"MUTANTS_RECORD": str(result), "MUTANTS_SETTINGS": str(settings)}
    )
    if not result.exists():
        print(f"{name}: left out: {problem}", flush=True)
        return
    tests = json.loads(result.read_text(encoding="utf-8"))
    for test in tests.values():
        test["lines"] = {}
    for part in data.parent.glob(f"{data.name}.*"):
        add_lines(part, tree, tests)
    failed = [test for test, found in tests.items() if not found["passed"]]
    if failed:  # it may be coverage that they do not stand
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "recorder", *failed]
        run(command, tree, 600, FOLDER / f"{name}.again.log", {"MUTANTS_RECORD": str(result)})
        for test, found in json.loads(result.read_text(encoding="utf-8")).items():
            tests[test]["passed"] = found["passed"]
    remove(data)
    (FOLDER / f"{name}.json").write_text(json.dumps({"key": key, "tests": tests}), encoding="utf-8")


def remove(data: Path) -> None:
    for part in data.parent.glob(f"{data.name}.*"):
        part.unlink()


def add_lines(part: Path, tree: Path, tests: dict[str, dict[str, object]]) -> None:
    """Add what one process ran to the tests under way. What ran between tests, as modules are imported, is no test's."""
    data = CoverageData(basename=str(part), no_disk=False)
    try:
        data.read()
    except CoverageException:  # a process that was killed as it wrote
        return
    for file in data.measured_files():
        path = str(Path(file).relative_to(tree))
        for line, contexts in data.contexts_by_lineno(file).items():
            for context in contexts:
                for name in context.split("|"):
                    if name in tests:
                        tests[name]["lines"].setdefault(path, []).append(line)  # type: ignore[attr-defined]


def make(trees: queue.SimpleQueue[Path], name: str, key: str) -> None:
    tree = trees.get()
    try:
        record(name, key, tree)
    finally:
        trees.put(tree)


def stale() -> dict[str, str]:
    """The test files whose records are missing or old."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    return {name: key for name, key in keys().items() if not fresh(FOLDER / f"{name}.json", key)}


def fresh(path: Path, key: str) -> bool:
    if not path.exists():
        return False
    with path.open(encoding="utf-8") as file:  # the key comes first, the rest is long
        return key in file.read(200)


def load() -> list[Test]:
    """The tests that pass on the project as it is, cheap ones first."""
    found = []
    for name in keys():
        path = FOLDER / f"{name}.json"
        if not path.exists():
            continue
        for test, values in json.loads(path.read_text(encoding="utf-8"))["tests"].items():
            if values["passed"]:
                lines = {file: frozenset(numbers) for file, numbers in values["lines"].items()}
                found.append(Test(test, values["seconds"], lines))
    return sorted(found, key=lambda test: (test.seconds, test.name))
