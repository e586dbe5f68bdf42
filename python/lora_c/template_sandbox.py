"""Where chat templates run: jinja2's immutable sandbox in the dialect of transformers, with bounds on what it may take.

The sandbox of jinja2 keeps a stranger's program from the interpreter, not from memory and time: `s ~ s` in a loop, a width of
10**9 or nested loops take all there is. Here every step counts (`MAX_STEPS`, `MAX_SECONDS`), so does all text that steps make
(`MAX_BYTES` together, `MAX_TEXT` in one piece), and what makes a huge value from small ones is asked for its size before.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

MAX_TEXT = 64_000_000  # characters of one value, or of the whole text; no conversation comes near
MAX_BYTES = 2 << 30  # of all values that a template makes, whether kept or not
MAX_STEPS = 3_000_000  # of loops, calls, filters and operators
MAX_SECONDS = 10.0  # of CPU time
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
        self._began = time.thread_time()

    def step(self, n_bytes: int = 0) -> None:
        self.steps += 1
        self.bytes += n_bytes
        if self.steps > MAX_STEPS:
            raise refusal(f"more than {MAX_STEPS:,} steps")
        if self.bytes > MAX_BYTES:
            raise refusal(f"values of more than {MAX_BYTES >> 20} MiB")
        if time.thread_time() - self._began > MAX_SECONDS:
            raise refusal(f"more than {MAX_SECONDS:.0f} seconds")


budget: ContextVar[Budget | None] = ContextVar("budget", default=None)  # of the rendering in progress


def refusal(what: str) -> Exception:
    """The error of a template that asks for too much."""
    from jinja2.exceptions import SecurityError

    return SecurityError(f"a template that asks for {what}")


def _spend(value: Any) -> Any:
    """Count a step and what it made."""
    now = budget.get()
    if now is not None:
        n_items = len(value) if isinstance(value, (list, tuple, dict)) else 0
        now.step(sys.getsizeof(value) + _LIST_ITEM * n_items if n_items or isinstance(value, (str, bytes)) else 0)
    return value


def _need(size: float, what: str, most: float = MAX_TEXT) -> None:
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


def _written_size(value: Any, what: str = "text") -> int:
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


def _check_text_step(name: str, subject: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Refuse a method or a filter of a text whose result would be huge."""
    options = {key: value for key, value in options.items() if not key.startswith("_")}  # jinja2 hands over its own
    given = (*args, *options.values())
    most = max(_numbers(given), default=0)
    size = _written_size(subject, name) if isinstance(subject, (str, bytes)) or name in _WRITES else 0
    if name in _WIDTH and most > _MOST:
        raise refusal(f"a width of {most} ({name})")
    if name in _PER_CHARACTER:
        _need(size * (1 + max(most, *(len(text) for text in _flat(given) if isinstance(text, str)), 0)), name)
    if name == "translate":
        raise refusal("a translation table")
    if name == "replace":
        old, new = options.get("old", (*args, "")[0]), options.get("new", (*args, "", "")[1])
        _need(size + (1 + size / max(1, len(str(old)))) * _written_size(new, name), name)
    if name in ("format", "format_map"):
        _check_format(str(subject), given, name)
    if (name in _SPLITS and size > _LONG_TEXT) or (name in _SLOW and size > _SLOW_TEXT):
        raise refusal(f"{name} of a text of {size:,} characters")


def _check_format(form: str, given: Iterable[Any], name: str) -> None:
    """Refuse a format whose widths are huge, or which writes large values many times."""
    given = tuple(given)
    widths = [int(digits[:12]) for digits in re.findall(r"\d+", form)]
    if "*" in form or "}}" in form:  # a width may be among what is given
        widths += _numbers(_flat(given))
    if max(widths, default=0) > _MOST:
        raise refusal(f"a width of that size ({name})")
    fields = form.count("%") + form.count("{")
    _need(len(form) + fields * (_written_size(given, name) + max(widths, default=0)), name)


def _flat(given: Iterable[Any]) -> Iterable[Any]:
    for value in given:
        parts = None if isinstance(value, (str, bytes)) else _parts(value)
        yield from [value] if parts is None else parts


def _check_operator(operator: str, left: Any, right: Any) -> None:
    """Refuse an operator that makes a huge value from small ones."""
    if operator == "%" and isinstance(left, (str, bytes)):
        _check_format(str(left), right if isinstance(right, tuple) else (right,), operator)
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _need(left.bit_length() * right, operator, _MOST_BITS)
    elif operator == "*" and isinstance(left, int) and isinstance(right, int):
        _need(left.bit_length() + right.bit_length(), operator, _MOST_BITS)
    elif operator == "*":
        value, times = (left, right) if isinstance(right, int) else (right, left)
        if isinstance(value, (str, bytes)) and isinstance(times, int):
            _need(len(value) * times, operator)
        elif isinstance(value, (list, tuple)) and isinstance(times, int) and times > 1:
            _need((len(value) + _written_size(value, operator)) * times, operator, MAX_NODES)
    elif operator == "+" and isinstance(left, (str, bytes)) and isinstance(right, (str, bytes)):
        _need(len(left) + len(right), operator)
    elif operator == "+" and isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        if len(left) + len(right) > _LONG_LIST:
            _written_size([left, right], operator)


def _join(values: list[Any], between: str) -> None:
    _need(sum(_written_size(value, "join") for value in values) + len(values) * len(between), "join")


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts its step, and is refused before it makes a huge value."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # a context, or the environment, comes before the value

    @wraps(function)
    def filtered(*args: Any, **options: Any) -> Any:
        _spend(None)
        given = list(args)
        subject = given[first] if len(given) > first else None
        if name == "join" and len(given) > first and isinstance(subject, Iterable):
            given[first] = subject = list(subject)
            _join(subject, str((*given[first + 1 :], options.get("d", ""))[0]))
        if name == "sum" and not isinstance(options.get("start", (*given[first + 2 :], 0)[0]), (int, float)):
            raise refusal("a sum of lists")
        _check_text_step(name, subject, tuple(given[first + 1 :]), options)
        return _spend(function(*given, **options))

    return filtered


@lru_cache(maxsize=2)
def environment(marks: tuple[str, str] | None) -> Any:
    """Return the environment of templates; `marks` is written around {% generation %} ... {% endgeneration %}."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer

    class Generation(Extension):
        """{% generation %} surrounds the assistant's text; rendering plainly, it changes nothing."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            scope = nodes.Scope(body, lineno=line)
            if marks is None:
                return scope
            begin, end = (nodes.Output([nodes.TemplateData(mark)]) for mark in marks)
            return [begin, scope, end]

    def hook(name: str, arguments: list[Any], line: int) -> Any:
        return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None, lineno=line)

    class Counted(NodeTransformer):
        """Puts a step at the head of every loop's body, and bounds around what the sandbox has no hook for."""

        def visit_For(self, node: Any) -> Any:
            text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
            self.generic_visit(node)
            node.body.insert(0, nodes.ExprStmt(hook("count_step", [nodes.Const(text)], node.lineno), lineno=node.lineno))
            return node

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            return hook("concatenate", node.nodes, node.lineno)

        def visit_List(self, node: Any) -> Any:
            self.generic_visit(node)
            return hook("bounded", [node], node.lineno) if node.items else node

        visit_Dict = visit_List

        def visit_Tuple(self, node: Any) -> Any:
            return self.visit_List(node) if node.ctx == "load" else self.generic_visit(node)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**", "+", "%"])

        def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
            return Counted().visit(super()._parse(source, name, filename))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operator(operator, left, right)
            return _spend(super().call_binop(context, operator, left, right))

        def call(self, context: Any, function: Any, /, *args: Any, **options: Any) -> Any:
            if any(function is own for own in (count_step, concatenate, bounded)):
                return function(*args)
            method = getattr(function, "__wrapped__", function) if callable(function) else None  # jinja2 wraps str.format
            owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
            if isinstance(owner, (str, bytes, int)):
                if name == "join" and args and isinstance(args[0], Iterable) and isinstance(owner, (str, bytes)):
                    args = (list(args[0]), *args[1:])
                    _join(args[0], str(owner))
                _check_text_step(name, owner, args, options)
            _spend(None)
            return _spend(super().call(context, function, *args, **options))

    def count_step(n_characters: int) -> None:
        now = budget.get()
        if now is not None:
            now.step(n_characters)

    def concatenate(*values: Any) -> str:
        _need(sum(_written_size(value, "~") for value in values), "~")
        text: str = _spend("".join(map(str, values)))
        return text

    def bounded(value: Any) -> Any:
        _written_size(value)
        return _spend(value)

    def written(value: Any) -> Any:
        """Every value that a template writes passes here."""
        if not isinstance(value, str):
            _written_size(value)
        return _spend(value)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        _check_format(form, (), "strftime_now")
        return datetime.now().strftime(form)

    made = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], finalize=written)
    made.filters["tojson"] = tojson
    made.filters = {name: _bounded_filter(name, function) for name, function in made.filters.items()}
    made.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    del made.globals["lipsum"]  # filler text, of any length
    made.count_step, made.concatenate, made.bounded = count_step, concatenate, bounded  # type: ignore[attr-defined]
    return made
