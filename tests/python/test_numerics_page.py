"""docs/NUMERICS.md quotes every bound as its place states it, and names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "NUMERICS.md"
LONGEST_CELL = 130
# A comment that promises something, and the name that is declared behind it: a function, a slot, or a whole header.
COMMENT = re.compile(r"/\*(?:(?!\*/).)*?\bNumerics\b.*?\*/", re.S)
DECLARED = re.compile(
    r"\s*(?:/\*.*?\*/\s*)*(?:#ifndef \w+|[^;{}()]*?\(\*(?P<slot>\w+)\)\(|[^;{}()]*?(?P<function>\w+)\()", re.S
)


def rows() -> list[tuple[str, str, str, str]]:
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[0] not in ("what", "---"):
            found.append((cells[0], cells[1].replace("\\|", "|"), cells[2].strip("`"), cells[3].strip("`")))
    return found


ROWS = rows()


def words(text: str) -> str:
    """A text in one line, without what marks a comment, code or the continuation of a string."""
    return " ".join(re.sub(r"^\s*(/\*\*?|\*/?|#)\s|`", " ", text, flags=re.M).split())


def promises() -> list[tuple[str, str]]:
    found = []
    for header in sorted((ROOT / "lora_c").rglob("*.h")):
        text = header.read_text(encoding="utf-8")
        for comment in COMMENT.finditer(text):
            declared = DECLARED.match(text, comment.end())
            assert declared, f"{header}: nothing is declared behind {comment[0][:60]!r}"
            name = declared["slot"] or declared["function"] or header.relative_to(ROOT).as_posix()
            found.append((header.relative_to(ROOT).as_posix(), name))
    return found


def test_there_are_rows_and_promises() -> None:
    assert len(ROWS) > 60 and len(promises()) > 25
    assert len(set(ROWS)) == len(ROWS)


@pytest.mark.parametrize(("header", "name"), promises())
def test_every_promise_of_a_header_has_its_row(header: str, name: str) -> None:
    assert any(file == header and f"`{name}`" in what for what, _, file, _ in ROWS), f"docs/NUMERICS.md: no row of {name}"


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_bound_is_quoted_from_its_place(row: tuple[str, str, str, str]) -> None:
    what, bound, file, _ = row
    stated = words((ROOT / file).read_text(encoding="utf-8"))
    quotes = re.findall(r"`([^`]+)`", bound) or [bound]
    for quote in quotes:
        assert words(quote) in stated, f"{what}: {file} does not say {quote!r}"


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_bound_has_a_test(row: tuple[str, str, str, str]) -> None:
    path, name = row[3].split("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    declared = rf"^def {name}\(" if path.endswith(".py") else rf"^(static )?\w+ {name}\("
    assert re.search(declared, text, re.M), f"{row[0]}: {path} has no {name}"


def test_cells_are_short() -> None:
    assert max(len(cell) for row in ROWS for cell in row) <= LONGEST_CELL
