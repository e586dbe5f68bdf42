"""From the bytes of a body to the fields of a request; what is wrong is said by the name of its field."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .problems import ApiProblem
from .schema import Body

T = TypeVar("T", bound=Body)


def parse(cls: type[T], data: bytes) -> T:
    """Read the body of a request.

    Raises
    ------
    ApiProblem
        It is no JSON, or a field is wrong; the message names it.
    """
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError:
        raise ApiProblem(400, "body: expected UTF-8, got other bytes") from None
    except (ValueError, RecursionError) as error:
        raise ApiProblem(400, f"body: expected a JSON object, got: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise ApiProblem(400, f"body: expected a JSON object, got {type(value).__name__}")
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for i, part in enumerate(first["loc"]) if not i or not _is_type(part))[:200]
        name = str(first["loc"][0])[:80] if first["loc"] else None
        if first["type"] == "extra_forbidden":
            raise ApiProblem(
                400, f"{path}: expected a field of this request, got an unknown one; leave it out", name
            ) from None
        raise ApiProblem(400, f"{path}: {_said(first)}", name) from None
    except RecursionError:
        raise ApiProblem(400, "body: expected JSON of little depth, got more") from None


def _is_type(part: int | str) -> bool:
    """Whether pydantic names a type of a field that may have several, which is no part of the path."""
    return part in ("str", "int") or "[" in str(part)


def _said(error: ErrorDetails) -> str:
    """What was expected, and got."""
    if error["type"] == "missing":
        return "expected a value, got none"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")[:300]
    if ", got " in message:
        return message
    message = message if "expected" in message else f"expected another value ({message})"
    return f"{message}, got {_shown(error['input'])}"


def _shown(value: Any) -> str:
    """A value of JSON in a few characters."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _refuse(name: str) -> None:
    raise ValueError(f"{name}, which JSON has not")
