"""The documents name files that exist, and no feature without a test.

How a path may be written: from the top of the repository; from `python/lora_c`, `lora_c` or `lora_c/include/lora_c`; or, in a
paragraph or a row of a table, from the folder of a path that stands before it. `<name>` and `*` stand for anything.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").glob("*.md"))]
FROM = ["", "python/lora_c", "lora_c", "lora_c/include", "lora_c/include/lora_c"]
FOLDERS = "benchmarks|docs|examples|lora_c|notebooks|python|tests"
# Sources and documents anywhere in a text; folders in code; anything in code below a folder of the repository.
NAMED = re.compile(
    r"(?<![\w./~-])(?P<file>[\w<>*./-]*[\w>*]\.(?:py|pyi|c|h|md|toml))(?![\w/])"
    rf"|`(?P<folder>[\w<>*./-]+/)`|`(?P<below>(?:{FOLDERS})/[\w<>*./-]+)`"
)
SUPPORT = ROOT / "docs" / "SUPPORT.md"
LONGEST_CELL = 120


def blocks(text: str) -> list[str]:
    """Paragraphs, items of a list and rows of a table."""
    return re.split(r"\n\s*\n|\n(?=\||\* |\d+\. )", text)


def found(start: str, name: str) -> list[Path]:
    pattern = re.sub(r"<\w+>", "*", name).rstrip("/")
    below = ROOT / start
    if pattern.startswith((".", "/")) or not below.is_dir():
        return []
    return [p for p in below.glob(pattern) if p.is_dir() or not name.endswith("/")]


def missing(text: str) -> list[str]:
    """The paths of a text that lead nowhere; programs and commands in it name files of their own."""
    text = re.sub(r"```(?:c|sh)\n.*?```", "", text, flags=re.S)
    lost = []
    for block in blocks(re.sub(r"\[[^\]]*\]\([^)\s]*\)", "", text)):  # links have a test of their own
        before: list[str] = []
        for match in NAMED.finditer(block):
            name = (match["file"] or match["folder"] or match["below"]).removeprefix("../")
            hits = [p for start in [*reversed(before), *FROM] for p in found(start, name)]
            if not hits:
                lost.append(name)
                continue
            folder = hits[0] if hits[0].is_dir() else hits[0].parent
            before.append(folder.relative_to(ROOT).as_posix())
    return lost


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_of_a_document_exists(document: str) -> None:
    assert not missing((ROOT / document).read_text(encoding="utf-8"))


def test_paths_are_found_and_missed() -> None:
    assert not missing("`python/lora_c/cli/train.py`, `paths.py`; `nn.h`\n\n`lora_c/kernels/<family>_kernels.h`, then `x86/`")
    assert missing("`python/lora_c/cli/train.py`\n\n`train_.py`, `paths.py`") == ["train_.py", "paths.py"]
    assert missing("`tests/nothing`, docs/NOTHING.md; `nowhere/`") == ["tests/nothing", "docs/NOTHING.md", "nowhere/"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{document}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles], f"{document}: {target}"


def test_every_supported_feature_has_a_test() -> None:
    rows = [line for line in SUPPORT.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| feature", "| ---"))]
    assert len(rows) > 60
    for row in rows:
        feature, test = (cell.strip() for cell in row.strip("|").rsplit("|", 1))
        link = re.fullmatch(r"\[([\w.]+)\]\(\.\./(tests/\S+)\)", test)
        assert feature and link and link[2].endswith(f"/{link[1]}"), row
        assert re.search(r"^def test_|^\s+def test_|\bCHECK\(", (ROOT / link[2]).read_text(encoding="utf-8"), re.M), row
        assert max(len(feature), len(test)) <= LONGEST_CELL, row


def test_the_commands_are_those_of_the_readme_and_of_the_tests() -> None:
    from command_lines import CALLS

    from lora_c.cli.commands import COMMANDS

    listed = re.search(r"`lora-c ((?:\w+ \| )+\w+)`, each", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert listed is not None and set(listed[1].split(" | ")) == set(COMMANDS) == set(CALLS)
