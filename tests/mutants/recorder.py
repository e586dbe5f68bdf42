"""A plugin of pytest: which test was under way when a line ran (the contexts of coverage), what it took, whether it passed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

tests: dict[str, dict[str, object]] = {}


def pytest_configure() -> None:
    if "MUTANTS_SETTINGS" in os.environ:  # what tests start is recorded, too
        os.environ["COVERAGE_PROCESS_START"] = os.environ["MUTANTS_SETTINGS"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    current = coverage.Coverage.current()
    os.environ["MUTANTS_TEST"] = item.nodeid  # the context of a process that the test starts
    if current is not None:
        current.switch_context(item.nodeid)
    start = time.perf_counter()
    tests[item.nodeid] = {"passed": True}
    try:
        return (yield)
    finally:
        tests[item.nodeid]["seconds"] = time.perf_counter() - start
        if current is not None:
            current.switch_context("")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        tests[report.nodeid]["passed"] = False


def pytest_sessionfinish() -> None:
    Path(os.environ["MUTANTS_RECORD"]).write_text(json.dumps(tests), encoding="utf-8")
