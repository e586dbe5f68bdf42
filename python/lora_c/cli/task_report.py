"""What `lora-c eval --task` prints and writes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..tasks import Outcome
    from ..tasks.scores import Difference

    Writer = Callable[[Sequence[Any], Outcome, Outcome | None], None]

_INTERVAL = 5.0  # seconds between two lines about answers
_DIGITS = {"perplexity": 3, "bleu": 2}


def task_progress(label: str, who: str) -> Callable[[int, int], None]:
    """What says now and then how many examples are done; a log that is full or gone ends nothing.

    Parameters
    ----------
    label, who : str
        Before and behind the counts.
    """
    last = time.monotonic()
    shown = False

    def show(done: int, total: int) -> None:
        nonlocal last, shown
        if time.monotonic() - last >= _INTERVAL or (shown and done == total):
            last, shown = time.monotonic(), True
            with suppress(OSError, ValueError):
                print(f"{label:<9} {done:,} of {total:,}{who}", file=sys.stderr, flush=True)

    return show


def score_lines(
    outcome: Outcome, baseline: Outcome | None, differences: Mapping[str, Difference], names: tuple[str, str]
) -> list[str]:
    """The scores for people: in one line, or beside those of the base or of another adapter; names: of the two sides."""
    if baseline is None:
        return ["  ".join(f"{name} {_number(name, score.value)}" for name, score in outcome.scores.items())]
    rows = [("", *names, "difference", "95 % interval")]
    for name, score in outcome.scores.items():
        found = differences[name]
        low, high = (_number(name, value, "+") for value in (found.low, found.high))
        numbers = _number(name, baseline.scores[name].value), _number(name, score.value), _number(name, found.value, "+")
        rows.append((name, *numbers, f"{low} to {high}{'' if found.is_clear else '  (holds 0: no clear difference)'}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = []
    for row in rows:
        cells = [
            f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join([*cells, row[4]]))
    return lines


def score_values(outcome: Outcome, baseline: Outcome | None, differences: Mapping[str, Difference]) -> dict[str, Any]:
    """The same for programs."""
    values: dict[str, Any] = {name: score.value for name, score in outcome.scores.items()}
    if baseline is not None:
        values["baseline"] = {name: score.value for name, score in baseline.scores.items()}
        values["difference"] = {
            name: {"value": found.value, "low": found.low, "high": found.high, "level": found.level}
            for name, found in differences.items()
        }
    return values


@contextmanager
def examples_file(path: str | None) -> Iterator[Writer]:
    """Begin a file that gets a line for each example, before the work; it appears when it is whole. None: there is none.

    Raises
    ------
    SaveError
        It cannot be written.
    """
    from ..files.atomic import atomic_file

    if path is None:
        yield lambda given, outcome, baseline: None
        return
    with atomic_file(path) as file:
        yield partial(_write_examples, file)


def _write_examples(file: IO[bytes], given: Sequence[Any], outcome: Outcome, baseline: Outcome | None) -> None:
    for i, (item, found) in enumerate(zip(given, outcome.examples, strict=True)):
        record = {**_asked(item), **found} | ({} if baseline is None else {"baseline": baseline.examples[i]})
        file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def _asked(item: Any) -> dict[str, Any]:
    """What a sequence or a question was, in its record."""
    found: dict[str, Any] = {"where": item.where}
    if hasattr(item, "prompt"):
        found["prompt"] = item.prompt
        right = {"choices": list(item.choices), "right": item.right} if item.choices else {"references": list(item.references)}
        found |= right
    return found


def _number(name: str, value: float, sign: str = "") -> str:
    return f"{value:{sign}.{_DIGITS.get(name, 4)}f}"
