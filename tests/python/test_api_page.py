"""docs/API.md is what `make api` writes, and the docstrings below it name the parameters that there are."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

import lora_c as lc

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
from docstrings import parse  # noqa: E402
from make_api import PAGE, render  # noqa: E402
from public_api import GROUPS, is_method, members, parameters  # noqa: E402

sys.path.remove(str(TOOLS))


def public() -> dict[str, Any]:
    """Every public function, class and method, by name; of classes that nobody calls the methods alone."""
    found: dict[str, Any] = {f"ops.{name}": getattr(lc.ops, name) for name in lc.ops.__all__}
    for name in (name for names in GROUPS.values() for name in names):
        value = getattr(lc, name)
        if not (inspect.isclass(value) and issubclass(value, BaseException)):
            found[name] = value
        if inspect.isclass(value):
            found |= {f"{name}.{each}": member for each, member in members(value).items()}
    return found


PUBLIC = public()
CALLED = {name: value for name, value in PUBLIC.items() if inspect.isclass(value) or is_method(value)}


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run `make api`"


def test_the_page_has_every_name_once() -> None:
    titles = [line for line in render().splitlines() if line.startswith("#")]
    assert len(titles) == len(set(titles)) > 150
    assert {f"### {name}" for names in GROUPS.values() for name in names} <= set(titles)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_described(name: str) -> None:
    assert len((inspect.getdoc(PUBLIC[name]) or "").split()) >= 2


@pytest.mark.parametrize("name", CALLED)
def test_the_parameters_that_are_described_are_those_that_there_are(name: str) -> None:
    value = CALLED[name]
    doc = parse(inspect.getdoc(value) or "")
    described = [each.lstrip("*") for entry in doc.entries("Parameters") for each in entry.names]
    if inspect.isclass(value) and "Parameters" not in doc.sections:
        return  # made by others; its attributes are described
    there = parameters(value)
    assert sorted(described) == sorted(there) if "Parameters" in doc.sections else len(there) <= 1


def test_a_docstring_is_taken_apart() -> None:
    text = "One line.\n\nMore.\n\nParameters\n----------\na, b : int, default 1\n    First.\n\n    Second.\n**c\n    Rest."
    doc = parse(f"{text}\n\nRaises\n------\nValueError\n    Why.")
    assert doc.summary == "One line." and doc.text == "One line.\n\nMore."
    first, rest = doc.entries("Parameters")
    assert (first.names, first.type, first.text) == (("a", "b"), "int, default 1", "First.\n\nSecond.")
    assert (rest.names, rest.type, rest.text) == (("**c",), "", "Rest.")
    assert [(entry.names, entry.type, entry.text) for entry in doc.entries("Raises")] == [((), "ValueError", "Why.")]
