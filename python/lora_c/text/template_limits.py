"""What a chat template may take of memory and time.

The sandbox of jinja2 keeps a stranger's program from the interpreter, not from memory and time: `s ~ s` in a loop, a width of
10**9 or nested loops take all there is. Here every step counts (`MAX_STEPS`, `MAX_SECONDS`), so does all text that steps make
(`MAX_BYTES` together, `MAX_TEXT` in one piece), and what makes a huge value from small ones is asked for its size before.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import ItemsView, Iterable, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from typing import Any

MAX_SOURCE = 200_000  # characters of the template itself; the longest in use have some 20,000
MAX_TEXT = 64_000_000  # characters of one value, or of the whole text; no conversation comes near
MAX_BYTES = 2 << 30  # of all values that a template makes, whether kept or not
MAX_STEPS = 3_000_000  # of loops, calls, filters and operators
MAX_SECONDS = 20.0
_STEPS_OF_CLOCK = 32  # between two looks at it
MAX_NODES = 2_000_000  # of a nested value that is written out
_LONG_TEXT, _SLOW_TEXT = 4_000_000, 1_000_000  # characters for what takes much memory or time for each
_LONG_LIST = 1000  # a list that is looked through before it grows
_MOST = 1_000_000  # of widths, precisions and counts that are arguments
_MOST_BITS = 100_000  # of an integer
_LIST_ITEM = 50  # bytes of what a list holds, about

_WIDTH = {"center", "ljust", "rjust", "zfill", "to_bytes", "batch", "slice", "round", "truncate"}
_PER_CHARACTER = {"expandtabs", "indent", "tojson", "wordwrap", "urlize"}  # arguments that may be written once a character
_SPLITS = {"split", "rsplit", "splitlines"}
_SLOW = {"wordwrap", "urlize", "striptags", "pprint", "title"}
_WRITES = {
    "string", "tojson", "pprint", "xmlattr", "urlencode", "escape", "e", "forceescape", "safe", "replace", "upper", "lower",
    "capitalize", "title", "trim", "center", "indent", "truncate", "wordcount", "format",
}  # fmt: skip


class Budget:
    """What one rendering has taken so far."""

    def __init__(self) -> None:
        self.steps = 0
        self.bytes = 0
        self._began = time.perf_counter()

    def step(self, n_bytes: int = 0) -> None:
        self.steps += 1
        self.bytes += n_bytes
        if self.steps > MAX_STEPS:
            raise refusal(f"more than {MAX_STEPS:,} steps")
        if self.bytes > MAX_BYTES:
            raise refusal(f"values of more than {MAX_BYTES >> 20} MiB")
        if not self.steps % _STEPS_OF_CLOCK and time.perf_counter() - self._began > MAX_SECONDS:
            raise refusal(f"more than {MAX_SECONDS:.0f} seconds")


budget: ContextVar[Budget | None] = ContextVar("budget", default=None)  # of the rendering in progress


def refusal(what: str) -> Exception:
    """The error of a template that asks for too much."""
    from jinja2.exceptions import SecurityError

    return SecurityError(f"a template that asks for {what}")


def spend(value: Any) -> Any:
    """Count a step and what it made; refuse a nested value that would be huge if it were written."""
    now = budget.get()
    if now is not None:
        if isinstance(value, (str, bytes)):
            now.step(sys.getsizeof(value))
        elif isinstance(value, (list, tuple, dict)):
            written_size(value)  # one part held twice, in every level: comparing two such values would never end
            now.step(sys.getsizeof(value) + _LIST_ITEM * len(value))
        else:
            now.step()
    return value


def need(size: float, what: str, most: float = MAX_TEXT) -> None:
    if size > most:
        raise refusal(f"a value of that size ({what})")


def _parts(value: Any) -> Iterable[Any] | None:
    """What is written where a nested value is; None for a plain one."""
    from jinja2.utils import Namespace

    if isinstance(value, Namespace):
        value = getattr(value, "_Namespace__attrs", {})  # its text is that of what it holds
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, (list, tuple, KeysView, ValuesView, ItemsView)) else None


def written_size(value: Any, what: str = "text") -> int:
    """Characters of a value as text, about; parts that a nested value holds several times count each time."""
    size, nodes, waiting = 0, 0, [value]
    while waiting:
        part = waiting.pop()
        nodes += 1
        if isinstance(part, (str, bytes)):
            size += len(part)
        elif isinstance(part, int):
            size += 1 + part.bit_length() // 3
        elif (inner := _parts(part)) is not None:
            size += 4
            waiting += inner
        else:
            size += 20
        if nodes + len(waiting) > MAX_NODES or size > MAX_TEXT:
            raise refusal(f"a value of that size ({what})")
    return size


def _numbers(values: Iterable[Any]) -> list[int]:
    return [abs(value) for value in values if isinstance(value, int)]


def check_text_step(name: str, subject: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Refuse a method or a filter of a text whose result would be huge."""
    options = {key: value for key, value in options.items() if not key.startswith("_")}  # jinja2 hands over its own
    given = (*args, *options.values())
    most = max(_numbers(given), default=0)
    size = written_size(subject, name) if isinstance(subject, (str, bytes)) or name in _WRITES else 0
    if name in _WIDTH and most > _MOST:
        raise refusal(f"a width of {most} ({name})")
    if name in _PER_CHARACTER:
        need(size * (1 + max(most, *(len(text) for text in _flat(given) if isinstance(text, str)), 0)), name)
    if name == "translate":
        raise refusal("a translation table")
    if name == "replace":
        old, new = options.get("old", (*args, "")[0]), options.get("new", (*args, "", "")[1])
        need(size + (1 + size / max(1, len(str(old)))) * written_size(new, name), name)
    if name in ("format", "format_map"):
        check_format(str(subject), given, name)
    if (name in _SPLITS and size > _LONG_TEXT) or (name in _SLOW and size > _SLOW_TEXT):
        raise refusal(f"{name} of a text of {size:,} characters")


def check_format(form: str, given: Iterable[Any], name: str) -> None:
    """Refuse a format whose widths are huge, or which writes large values many times."""
    given = tuple(given)
    widths = [int(digits[:12]) for digits in re.findall(r"\d+", form)]
    if "*" in form or "}}" in form:  # a width may be among what is given
        values = list(_flat(given))
        texts = [text for text in values if isinstance(text, str)]
        widths += _numbers(values) + [int(text) for text in texts if re.fullmatch(r"[0-9]{1,12}", text)]
    if max(widths, default=0) > _MOST:
        raise refusal(f"a width of that size ({name})")
    fields = form.count("%") + form.count("{")
    need(len(form) + fields * (written_size(given, name) + max(widths, default=0)), name)


def _flat(given: Iterable[Any]) -> Iterable[Any]:
    for value in given:
        parts = None if isinstance(value, (str, bytes)) else _parts(value)
        yield from [value] if parts is None else parts


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Refuse an operator that makes a huge value from small ones."""
    if operator == "+":
        _check_sum(left, right)
    elif operator == "%" and isinstance(left, (str, bytes)):
        check_format(str(left), right if isinstance(right, tuple) else (right,), operator)
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        need(left.bit_length() * right, operator, _MOST_BITS)
    elif operator == "*" and isinstance(left, int) and isinstance(right, int):
        need(left.bit_length() + right.bit_length(), operator, _MOST_BITS)
    elif operator == "*":
        value, times = (left, right) if isinstance(right, int) else (right, left)
        if isinstance(value, (str, bytes)) and isinstance(times, int):
            need(len(value) * times, operator)
        elif isinstance(value, (list, tuple)) and isinstance(times, int) and times > 1:
            need((len(value) + written_size(value, operator)) * times, operator, MAX_NODES)


def _check_sum(left: Any, right: Any) -> None:
    if isinstance(left, (str, bytes)) and isinstance(right, (str, bytes)):
        need(len(left) + len(right), "+")
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and len(left) + len(right) > _LONG_LIST:
        written_size([left, right], "+")


def check_join(values: list[Any], between: str) -> None:
    need(sum(written_size(value, "join") for value in values) + len(values) * len(between), "join")
