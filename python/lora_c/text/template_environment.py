"""The environment of chat templates. It imports jinja2, which takes a while: `template_sandbox` does so when one is needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import FunctionLoader, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from .template_limits import (
    budget,
    check_format,
    check_join,
    check_operator,
    check_text_step,
    need,
    refusal,
    spend,
    written_size,
)


class Generation(Extension):
    """{% generation %} surrounds the assistant's text; rendering plainly, it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        """Return the body, between the marks of the environment where it has some."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        scope = nodes.Scope(body, lineno=line)
        marks = self.environment.marks  # type: ignore[attr-defined]
        if marks is None:
            return scope
        begin, end = (nodes.Output([nodes.TemplateData(mark)]) for mark in marks)
        return [begin, scope, end]


def _hook(name: str, arguments: list[Any], line: int) -> Any:
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None, lineno=line)


class Counted(NodeTransformer):
    """Puts a step at the head of every loop's body, and bounds around what the sandbox has no hook for."""

    def visit_For(self, node: Any) -> Any:
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_hook("count_step", [nodes.Const(text)], node.lineno), lineno=node.lineno))
        return node

    def visit_Concat(self, node: Any) -> Any:
        self.generic_visit(node)
        return _hook("concatenate", node.nodes, node.lineno)

    def visit_List(self, node: Any) -> Any:
        self.generic_visit(node)
        return _hook("bounded", [node], node.lineno) if node.items else node

    visit_Dict = visit_List

    def visit_Getitem(self, node: Any) -> Any:
        self.generic_visit(node)
        return _hook("bounded", [node], node.lineno) if isinstance(node.arg, nodes.Slice) else node

    def visit_Tuple(self, node: Any) -> Any:
        return self.visit_List(node) if node.ctx == "load" else self.generic_visit(node)


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's immutable sandbox within `template_limits`; `marks` is written around {% generation %}."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self, marks: tuple[str, str] | None, **options: Any) -> None:
        self.marks = marks
        super().__init__(**options)
        self.count_step, self.concatenate, self.bounded = _count_step, _concatenate, spend

    def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
        return Counted().visit(super()._parse(source, name, filename))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        check_operator(operator, left, right)
        return spend(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, /, *args: Any, **options: Any) -> Any:
        if any(function is own for own in (_count_step, _concatenate, spend)):
            return function(*args)
        method = getattr(function, "__wrapped__", function) if callable(function) else None  # jinja2 wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, (str, bytes, int)):
            if name == "join" and args and isinstance(args[0], Iterable) and isinstance(owner, (str, bytes)):
                args = (list(args[0]), *args[1:])
                check_join(args[0], str(owner))
            check_text_step(name, owner, args, options)
        spend(None)
        return spend(super().call(context, function, *args, **options))


def make(marks: tuple[str, str] | None) -> Sandbox:
    """Return a new environment, in the dialect of transformers."""
    made = Sandbox(
        marks, trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], finalize=_written,
        loader=FunctionLoader(_no_other_file),
    )  # fmt: skip
    made.filters["tojson"] = _tojson
    made.filters = {name: _bounded_filter(name, function) for name, function in made.filters.items()}
    made.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    del made.globals["lipsum"]  # filler text, of any length
    return made


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts its step, and is refused before it makes a huge value."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # a context, or the environment, comes before the value

    @wraps(function)
    def filtered(*args: Any, **options: Any) -> Any:
        spend(None)
        given = list(args)
        subject = given[first] if len(given) > first else None
        if name == "join" and len(given) > first and isinstance(subject, Iterable):
            given[first] = subject = list(subject)
            check_join(subject, str((*given[first + 1 :], options.get("d", ""))[0]))
        if name == "sum" and not isinstance(options.get("start", (*given[first + 2 :], 0)[0]), (int, float)):
            raise refusal("a sum of lists")
        check_text_step(name, subject, tuple(given[first + 1 :]), options)
        return spend(function(*given, **options))

    return filtered


def _count_step(n_characters: int) -> None:
    now = budget.get()
    if now is not None:
        now.step(n_characters)


def _concatenate(*values: Any) -> str:
    need(sum(written_size(value, "~") for value in values), "~")
    text: str = spend("".join(map(str, values)))
    return text


def _written(value: Any) -> Any:
    """Every value that a template writes passes here."""
    if not isinstance(value, str):
        written_size(value)
    return spend(value)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    check_format(form, (), "strftime_now")
    return datetime.now().strftime(form)


def _no_other_file(name: str) -> None:
    raise refusal("another file (include, import, extends)")
