"""What a flag takes that is neither a number nor a path: free texts, lists, one of several values, pairs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import click

from ..errors import nearest
from .yaml_file import Plain, plain_value, real_number


class FreeText(click.ParamType):  # type: ignore[type-arg]
    """Any text as it stands, with its commas, spaces and newlines; a number from a file is none."""

    name = "TEXT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            self.fail(f"expected a text, got {value!r}; put it in quotes", param, ctx)
        return value


class Size(click.ParamType):  # type: ignore[type-arg]
    """A number, or a text with a unit; the configuration says what it is worth."""

    name = "SIZE"


class FiniteRange(click.FloatRange):
    """A number within bounds; nan, which no bound stops, and inf are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"expected a finite number, got {found}", param, ctx)
        return found


class Known(click.Choice):  # type: ignore[type-arg]
    """One of many names; a wrong one is answered with the nearest, and a long list with --help."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(list(names))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value not in self.choices:
            self.fail(
                f"expected one of the names that --help lists, got {value!r}{nearest(str(value), self.choices)}", param, ctx
            )
        return value


class TextList(click.ParamType):  # type: ignore[type-arg]
    """ "a,b" is a list, and so is a single name; "all-linear" and regular expressions stay texts.

    numbers: items of digits are numbers.
    """

    name = "A,B"

    def __init__(self, numbers: bool = False) -> None:
        self.numbers = numbers  # whether its items are whole numbers

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or not ("," in value or re.fullmatch(r"[\w.]+", value)):
            return value
        parts = [part.strip() for part in value.split(",") if part.strip()]
        return [int(p) if self.numbers and re.fullmatch(r"-?[0-9]+", p) else p for p in parts]


class Literals(click.Choice):  # type: ignore[type-arg]
    """The values of a Literal, which need not be texts: "true" on the command line and true in a file are True."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = {str(value).lower(): value for value in values}
        super().__init__(list(self.values), case_sensitive=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.values[super().convert(str(value).lower(), param, ctx)]


class Pairs(click.ParamType):  # type: ignore[type-arg]
    """NAME=NUMBER pairs, or a mapping from a file; with `texts`, a value may be a word."""

    name = "KEY=VALUE,..."
    numbers = True

    def __init__(self, texts: bool = False) -> None:
        self.texts = texts

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            pairs = [self._pair(text) for text in value.split(",")]
        except ValueError:
            self.fail(f"expected NAME={'VALUE' if self.texts else 'NUMBER'} pairs, got {value!r}", param, ctx)
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            self.fail(f"expected each name once, got {value!r}", param, ctx)
        return dict(pairs)

    def _pair(self, text: str) -> tuple[str, Any]:
        name, _, number = (part.strip() for part in text.rpartition("="))
        if not name:
            raise ValueError(text)
        try:
            real_number(number)
        except ValueError:
            if not self.texts or not number:
                raise
            return name, number
        return name, plain_value(Plain(number))
