"""Docstrings of the package have NumPy's form: sections with dashes, and entries that begin at their left edge."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import lora_c

PACKAGE = Path(lora_c.__file__).parent
TITLES = "Args|Arguments|Attributes|Example|Examples|Notes|Parameters|Raises|Returns|Shapes?|Source|Yields"
WITHOUT_DASHES = re.compile(rf"^ *(?:{TITLES})(?::.*|(?:  +\S.*)?\n(?! *---).*)$|\S {{2,}}(?:{TITLES}):", re.M)
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def docstrings(text: str) -> dict[str, str]:
    """Those of classes and functions, by name."""
    nodes = (n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)))
    return {node.name: ast.get_docstring(node) or "" for node in nodes}


@pytest.mark.parametrize("module", MODULES)
def test_sections_have_dashes(module: str) -> None:
    for name, doc in docstrings((PACKAGE / module).read_text(encoding="utf-8")).items():
        assert not WITHOUT_DASHES.search(doc), f"{module}: {name}"


@pytest.mark.parametrize("module", MODULES)
def test_dashes_are_as_long_as_their_title_and_stand_behind_a_blank_line(module: str) -> None:
    for name, doc in docstrings((PACKAGE / module).read_text(encoding="utf-8")).items():
        lines = doc.splitlines()
        for i, line in enumerate(lines):
            if re.fullmatch("-{3,}", line):
                assert len(line) == len(lines[i - 1]) and (i < 2 or not lines[i - 2]), f"{module}: {name}: {lines[i - 1]}"


@pytest.mark.parametrize(
    "doc",
    [
        "One.\n\nArgs:\n    x: a number",
        "One.\n\nRaises\n    ValueError  why",
        "One.\n\nSource: a paper",
        "One.   Source: a paper",
        "One.\n\nShapes  x (n,)\n",
    ],
)
def test_other_forms_are_found(doc: str) -> None:
    assert WITHOUT_DASHES.search(doc) and not WITHOUT_DASHES.search("One.\n\nSource\n------\nA paper: one.")
