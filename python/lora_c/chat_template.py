"""Chat templates: the Jinja programs of models that turn a conversation into the text which the model was trained on.

They are programs of strangers: they run in jinja2's immutable sandbox, and what they may write is bounded. The dialect is that
of transformers (whitespace rules, helpers, loop controls, the generation tag), so the text is the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import uuid4

from .errors import DataError

MAX_TEXT = 64_000_000  # characters; no conversation comes near
_BEGIN, _END = (f"\ue000{uuid4().hex}{mark}\ue001" for mark in "<>")  # around marked text while it is being rendered
_REASONING = ("reasoning_content", "thinking", "reasoning")  # the names under which reasoning comes, the standard one first


def render(
    source: str,
    messages: Sequence[Any],
    add_generation_prompt: bool,
    tools: Sequence[Any] | None,
    variables: Mapping[str, Any],
) -> str:
    """Return the text of a conversation.

    Raises
    ------
    DataError
        The template is broken, or refuses the messages.
    """
    return _render(source, False, messages, add_generation_prompt, tools, variables)


def render_marked(
    source: str, messages: Sequence[Any], tools: Sequence[Any] | None, variables: Mapping[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation and the (begin, end) of what the template marks as the assistant's.

    Templates mark with {% generation %} ... {% endgeneration %}; see `marks_assistant`.
    """
    pieces = re.split(f"({_BEGIN}|{_END})", _render(source, True, messages, False, tools, variables))
    text, spans, depth, begin = "", [], 0, 0
    for piece in pieces:
        if piece == _BEGIN:
            begin = begin if depth else len(text)
            depth += 1
        elif piece == _END:
            depth -= 1
            if depth == 0:
                spans.append((begin, len(text)))
        else:
            text += piece
    return text, spans


def marks_assistant(source: str) -> bool:
    """Whether the template itself says which text is the assistant's."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None


def _render(
    source: str, marked: bool, messages: Sequence[Any], prompt: bool, tools: Sequence[Any] | None, variables: Mapping[str, Any]
) -> str:
    import jinja2

    given = {
        "messages": [_visible(message) for message in messages],
        "tools": list(tools) if tools else None,
        "documents": None,
        "add_generation_prompt": prompt,
    }
    pieces, length = [], 0
    try:
        for piece in _compile(source, marked).generate(given | dict(variables)):
            length += len(piece)
            if length > MAX_TEXT:
                raise jinja2.TemplateError(f"a text of more than {MAX_TEXT} characters")
            pieces.append(piece)
        return "".join(pieces)
    except jinja2.TemplateError as error:
        raise DataError(f"messages: expected what the chat template accepts, got: {_one_line(error)}") from None
    except (TypeError, LookupError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise DataError(f"messages: expected messages with 'role' and 'content' text, got: {_one_line(error)}") from None


def _visible(message: Any) -> Any:
    """What a template sees of a message: no keys without a value, and reasoning under the names that templates read."""
    if not isinstance(message, Mapping):
        return message
    shown = {key: value for key, value in message.items() if value is not None}
    reasoning = next((shown[key] for key in _REASONING if key in shown), None)
    return shown if reasoning is None else {"thinking": reasoning} | shown | {"reasoning_content": reasoning}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


@lru_cache(maxsize=32)
def _compile(source: str, marked: bool) -> Any:
    return _environment(marked).from_string(source)


@lru_cache(maxsize=2)
def _environment(marked: bool) -> Any:
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} surrounds the assistant's text; rendering plainly, it changes nothing."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            scope = nodes.Scope(body, lineno=line)
            return [_literal(_BEGIN), scope, _literal(_END)] if marked else scope

    def _literal(text: str) -> Any:
        return nodes.Output([nodes.TemplateData(text)])

    class Sandbox(ImmutableSandboxedEnvironment):
        """Also stops the two operators that make a huge value from two small ones."""

        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            bits = left.bit_length() if isinstance(left, int) else 64
            size = bits * right if operator == "**" else _count(left) * _count(right)
            if isinstance(size, (int, float)) and size > MAX_TEXT:
                raise SecurityError(f"a value of that size ({operator})")
            return super().call_binop(context, operator, left, right)

    def _count(value: Any) -> Any:
        return len(value) if isinstance(value, (str, list, tuple)) else value if isinstance(value, int) else 1

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment
