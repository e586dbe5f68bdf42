"""What an inspection found."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from ..checkpoints.safetensors_file import TensorInfo
from ..errors import LoraCError, shorten

T = TypeVar("T")
_LONGEST = 300  # characters of a fact
_MOST_ITEMS = 1000  # of a list for programs


@dataclass
class Report:
    """What an inspection found.

    Parameters
    ----------
    kind : str
        What it is, in words.
    facts : dict
        Label to what people read: a number or a text.
    values : dict
        Label to what programs read in its place: counts by name, lists, truth values.
    tensors : list of dict
        One row per element type.
    problems : list of str
        What will be refused.
    """

    path: str
    kind: str = "unknown"
    bytes: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    tensors: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether nothing was found that would be refused."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """For JSON: keys in snake_case, the values of programs."""
        found = asdict(self)
        facts = {_snake_case(label): value for label, value in (found["facts"] | found.pop("values")).items()}
        return found | {"facts": facts, "usable": self.usable}

    def add(self, **facts: Any) -> None:
        """Keep the facts that are known: numbers as they are, anything else as a short text (it comes from a file)."""
        for label, value in facts.items():
            if value in (None, "", []):
                continue
            if isinstance(value, list):
                self.values[label.replace("_", " ")] = [str(item)[:_LONGEST] for item in value[:_MOST_ITEMS]]
            if not isinstance(value, (bool, int, float)):
                value = (shorten(value, 8) if isinstance(value, list) else str(value))[:_LONGEST]
            self.facts[label.replace("_", " ")] = value

    def add_counts(self, label: str, counts: Mapping[Any, int], shown: Iterable[str], limit: int = 5) -> None:
        """Keep how many there are of each: a text for people, numbers for programs."""
        text = shorten(shown, limit)
        if text:
            self.facts[label] = text
            self.values[label] = {re.sub(r"\W+", "_", str(name)): count for name, count in counts.items()}

    def collect(self, call: Callable[[], T]) -> T | None:
        """The result of a call; what it refuses becomes a problem."""
        try:
            return call()
        except LoraCError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None

    def count_tensors(self, tensors: Mapping[str, TensorInfo]) -> None:
        """One row per element type, the one with most bytes first."""
        rows: dict[str, dict[str, Any]] = {}
        for info in tensors.values():
            row = rows.setdefault(info.dtype, {"dtype": info.dtype, "tensors": 0, "elements": 0, "bytes": 0})
            row["tensors"] += 1
            row["elements"] += math.prod(info.shape)
            row["bytes"] += info.end - info.start
        self.tensors = sorted(rows.values(), key=lambda row: -row["bytes"])


def _snake_case(label: str) -> str:
    return re.sub(r"\W+", "_", label).strip("_").lower()


def shape_text(shape: Iterable[int]) -> str:
    """(2, 3) as 2 x 3."""
    return " x ".join(map(str, shape))
