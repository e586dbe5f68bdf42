"""Calls of tools in what a model writes, in the three forms that models are trained on.

Hermes, Qwen     <tool_call>{"name": …, "arguments": {…}}</tool_call>, any number
Llama 3          {"name": …, "parameters": {…}}, perhaps behind <|python_tag|>, several with ; between them
Mistral          [TOOL_CALLS] [{"name": …, "arguments": {…}}, …], or [TOOL_CALLS]name[ARGS]{…}
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Form = Literal["hermes", "llama3", "mistral"]
_OPEN = {"hermes": "<tool_call>", "llama3": "<|python_tag|>", "mistral": "[TOOL_CALLS]"}
_NAMED = re.compile(r"\s*([\w.-]{1,200})\s*(?:\[CALL_ID\][^\[{]*)?(?:\[ARGS\])?\s*(?=\{)")
_JSON = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """A call: its name, and the arguments as JSON text."""

    name: str
    arguments: str
    id: str


def form_of(template: str | None) -> Form | None:
    """The form that a chat template teaches; None: another one, whose calls stay text."""
    if template is None or "tools" not in template:
        return None
    if "<tool_call>" in template:
        return "hermes"
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<|python_tag|>" in template or ("ipython" in template and '"parameters"' in template):
        return "llama3"
    return None


class ToolCallParser:
    """Divides an answer, as it comes, into its content and its calls. What cannot be read as calls is content."""

    def __init__(self, form: Form) -> None:
        self._form, self._open = form, _OPEN[form]
        self._text = ""
        self._given = 0
        self._begin: int | None = None  # of what may be calls

    def push(self, piece: str) -> str:
        """Add text of the answer; return what is content for certain."""
        self._text += piece
        if self._begin is None:
            self._begin = self._found()
        end = len(self._text) - self._held() if self._begin is None else self._begin
        return self._give(end)

    def finish(self) -> tuple[str, list[Call]]:
        """The rest of the content, and the calls."""
        begin = self._begin
        calls = [] if begin is None else _read(self._form, self._text[begin:])
        return ("" if calls else self._give(len(self._text))), calls

    def _found(self) -> int | None:
        at = self._text.find(self._open, max(0, self._given - len(self._open)))
        if at < 0 and self._form == "llama3" and self._text.lstrip()[:1] == "{":
            at = 0
        if at < 0:
            return None
        return len(self._text[:at].rstrip()) if self._given <= len(self._text[:at].rstrip()) else at

    def _held(self) -> int:
        """Characters at the end that may belong to the begin of a call: white space, a part of the mark."""
        text = self._text[self._given :]
        most = next((n for n in range(min(len(self._open) - 1, len(text)), 0, -1) if self._open.startswith(text[-n:])), 0)
        rest = text[: len(text) - most]
        return most + len(rest) - len(rest.rstrip())

    def _give(self, end: int) -> str:
        piece = self._text[self._given : end]
        self._given = max(self._given, end)
        return piece


def _read(form: Form, text: str) -> list[Call]:
    """The calls in what begins with the mark; none where it cannot be read to its end."""
    try:
        values = list({"hermes": _hermes, "llama3": _llama, "mistral": _mistral}[form](text))
        return [_call(value, form) for value in values]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def _hermes(text: str) -> Iterator[Any]:
    for part in text.split("<tool_call>")[1:]:
        yield _JSON.raw_decode(part.lstrip())[0]


def _llama(text: str) -> Iterator[Any]:
    rest = text.replace("<|python_tag|>", "", 1).strip()
    while rest:
        value, end = _JSON.raw_decode(rest)
        yield value
        rest = rest[end:].lstrip("; \n\t")


def _mistral(text: str) -> Iterator[Any]:
    for part in text.split("[TOOL_CALLS]")[1:]:
        if named := _NAMED.match(part):
            yield {"name": named[1], "arguments": _JSON.raw_decode(part[named.end() :])[0]}
            continue
        value = _JSON.raw_decode(part.lstrip())[0]
        yield from value if isinstance(value, list) else [value]


def _call(value: Any, form: Form) -> Call:
    if not isinstance(value, dict):
        raise ValueError("no call")
    value = value.get("function", value) if isinstance(value.get("function"), dict) else value
    arguments = value["arguments"] if "arguments" in value else value.get("parameters", {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(value["name"], str) or not isinstance(arguments, dict):
        raise ValueError("no call")
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False), _new_id(form))


def _new_id(form: Form) -> str:
    """Mistral's templates want nine letters or digits."""
    letters = string.ascii_letters + string.digits
    made = "".join(secrets.choice(letters) for _ in range(9 if form == "mistral" else 24))
    return made if form == "mistral" else f"call_{made}"
