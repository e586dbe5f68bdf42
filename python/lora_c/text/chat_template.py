"""Chat templates: the Jinja programs of models that turn a conversation into the text which the model was trained on.

They are programs of strangers: `template_limits.py` bounds what they may take. Their dialect is that of transformers
(whitespace rules, helpers, loop controls, the generation tag), so the text is the same. What a template sees of a message is
in `template_messages.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from uuid import uuid4

from ..errors import DataError
from .template_limits import MAX_SOURCE, MAX_TEXT, Budget, budget, refusal
from .template_messages import as_template_reads
from .template_sandbox import environment

# Around marked text while it is being rendered: characters for private use without case or white space, of which no text
# from outside can know these, so none is taken for a mark.
_BEGIN, _END = ("\ue000" + "".join(chr(0xE100 + int(digit, 16)) for digit in uuid4().hex) + mark for mark in "\ue001\ue002")


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
        The template is broken, asks for too much, or refuses the messages.
    """
    return _render(source, False, messages, add_generation_prompt, tools, variables)


def render_marked(
    source: str, messages: Sequence[Any], tools: Sequence[Any] | None, variables: Mapping[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation and the (begin, end) of what the template marks as the assistant's.

    Templates mark with {% generation %} ... {% endgeneration %}; see `marks_assistant`.
    """
    pieces = re.split(f"({_BEGIN}|{_END})", _render(source, True, messages, False, tools, variables))
    text: list[str] = []
    spans: list[tuple[int, int]] = []
    length, depth, begin = 0, 0, 0
    for piece in pieces:
        if piece == _BEGIN:
            begin = begin if depth else length
            depth += 1
        elif piece == _END:
            depth -= 1
            if depth == 0:
                spans.append((begin, length))
        else:
            text.append(piece)
            length += len(piece)
    return "".join(text), spans


def marks_assistant(source: str) -> bool:
    """Whether the template itself says which text is the assistant's."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None


def _render(
    source: str, marked: bool, messages: Sequence[Any], prompt: bool, tools: Sequence[Any] | None, variables: Mapping[str, Any]
) -> str:
    given = {"tools": list(tools) if tools else None, "documents": None, "add_generation_prompt": prompt} | dict(variables)
    return as_template_reads(messages, lambda seen: _run(source, marked, {"messages": seen} | given))


def _run(source: str, marked: bool, variables: dict[str, Any]) -> str:
    import jinja2

    pieces, length = [], 0
    token = budget.set(Budget())
    try:
        for piece in _compile(source, marked).generate(variables):
            length += len(piece)
            if length > MAX_TEXT:
                raise refusal(f"a text of more than {MAX_TEXT:,} characters")
            pieces.append(piece)
        return "".join(pieces)
    except (jinja2.TemplateError, RecursionError, SyntaxError) as error:  # SyntaxError: a break outside of loops
        raise DataError(f"messages: expected what the chat template accepts, got: {_one_line(error)}") from None
    except MemoryError:
        raise DataError("messages: expected a chat template that fits into memory, got one that asks for more") from None
    except (TypeError, LookupError, AttributeError, ValueError, ArithmeticError) as error:
        raise DataError(f"messages: expected messages with 'role' and 'content' text, got: {_one_line(error)}") from None
    finally:
        budget.reset(token)


def check_template(source: str, where: str) -> None:
    """Refuse what is no template; the message begins with `where`, which its line follows.

    Raises
    ------
    DataError
        It does not compile.
    """
    import jinja2

    try:
        _compile(source, False)
    except jinja2.TemplateSyntaxError as error:
        got = f"{where}:{error.lineno}: expected a chat template (Jinja), got: {_one_line(error)}"
        raise DataError(got) from None
    except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
        raise DataError(f"{where}: expected a chat template (Jinja), got: {_one_line(error)}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


@lru_cache(maxsize=32)
def _compile(source: str, marked: bool) -> Any:
    if len(source) > MAX_SOURCE:  # compiling takes seconds for each hundred thousand
        raise refusal(f"a program of {len(source):,} characters, more than {MAX_SOURCE:,}")
    return environment((_BEGIN, _END) if marked else None).from_string(source)
