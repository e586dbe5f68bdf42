"""NumPy's form of docstrings, taken apart: a text, and sections with dashes below their names."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

# Sections whose entries are names with a type; in others an entry is a type alone.
NAMED = ("Parameters", "Attributes")
ENTRIES = (*NAMED, "Returns", "Yields", "Raises")
_TITLE = re.compile(r"^(\w[\w ]*)\n-{3,}$", re.M)


@dataclass(frozen=True)
class Entry:
    """One parameter, attribute, result or error."""

    names: tuple[str, ...]
    type: str
    text: str


@dataclass(frozen=True)
class Docstring:
    """What a docstring says: its text without sections, and the sections in their order."""

    text: str
    sections: dict[str, str]

    @property
    def summary(self) -> str:
        return self.text.partition("\n\n")[0].replace("\n", " ")

    def entries(self, title: str) -> list[Entry]:
        """The entries of a section: lines that begin at its left edge, each with the indented lines below it."""
        found = []
        for block in re.split(r"\n(?=\S)", self.sections.get(title, "")):
            if not block.strip():
                continue
            head, _, text = block.partition("\n")
            names, colon, kind = head.partition(" : ")
            if title not in NAMED:
                names, kind = "", head
            found.append(Entry(tuple(filter(None, names.split(", "))), kind if colon or not names else "", _clean(text)))
        return found


def _clean(text: str) -> str:
    return textwrap.dedent(text).strip()


def parse(doc: str) -> Docstring:
    """Take a docstring apart that inspect.getdoc() has cleaned."""
    parts = _TITLE.split(doc)
    return Docstring(parts[0].strip(), {parts[i]: parts[i + 1].strip("\n") for i in range(1, len(parts), 2)})
