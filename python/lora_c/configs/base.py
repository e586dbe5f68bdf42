"""What all options have in common: typed, validated models whose every refusal is one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import ConfigError, nearest
from .frozen_values import frozen, thawed
from .help import ConfigType, describe_fields
from .other_names import meant

if TYPE_CHECKING:
    from typing_extensions import Self

FREE_TEXTS = "free texts"  # marks a list whose items are any texts, so that no flag cuts them at commas
FreeTexts = Annotated[list[str], FREE_TEXTS]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # beyond it NumPy makes a key of floats


def _gib(value: Any) -> Any:
    """GiB of a text with a unit, as accelerate's max_memory takes it."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return TypeAdapter(ByteSize).validate_python(value.strip()) / 2**30
    except ValidationError:
        raise ValueError(f"expected GiB, such as 12, or a size with its unit, such as 12GB or 900MiB, got {value!r}") from None


SIZE = "a size"  # marks a number that may be a text with a unit
OptionalGiB = Annotated[float | None, Field(gt=0.0), BeforeValidator(_gib), SIZE]


def _nearest_option(model: type[BaseModel], name: str) -> str:
    found = meant(name, model.model_fields)
    return f", did you mean {found!r}?" if found else nearest(name, model.model_fields)


def _refusal(model: type[BaseModel], error: ValidationError) -> ConfigError:
    """All that is wrong in one line, and option by option."""
    problems = []
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            problems.append((name, f"unknown option{_nearest_option(model, name)}"))
            continue
        message = item["msg"].removeprefix("Value error, ")
        message = message.replace("Input should be ", "expected ")
        message = message[:1].lower() + message[1:]
        if not name:  # of the options together: the message begins with the one that it is about
            name, _, message = message.partition(": ")
        shown = f", got {repr(item['input'])[:80]}" if item["type"] != "value_error" else ""
        problems.append((name, message + shown))
    problems = list(dict.fromkeys(problems))
    return ConfigError(f"{model.__name__}: " + "; ".join(f"{name}: {text}" for name, text in problems), problems)


def _plain(value: Any) -> Any:
    """NumPy's scalars, tuples and paths as what they stand for; nothing else is converted: 8.9 is no rank, True no number."""
    if (numpy := sys.modules.get("numpy")) is not None and isinstance(
        value, numpy.generic
    ):  # there is none before it is loaded
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {_plain(key): _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


_FROZEN = "held by a model or a trainer"  # a key beside the values of a configuration that nobody may change any more


class Config(BaseModel, metaclass=ConfigType):
    """Base: unknown names and values of another type are refused, and every refusal is one line."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False, strict=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        describe_fields(cls)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**{name: _plain(value) for name, value in values.items()})
        except ValidationError as error:
            raise _refusal(type(self), error) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).model_fields:
            raise ConfigError(f"{type(self).__name__}: {name}: unknown option{_nearest_option(type(self), name)}")
        if _FROZEN in self.__dict__:
            raise ConfigError(
                f"{type(self).__name__}: {name}: expected a configuration of your own, got one {_FROZEN}, where a change "
                "would do nothing; change a copy (config.model_copy()) before you give it away"
            )
        try:
            super().__setattr__(name, _plain(value))
        except ValidationError as error:
            raise _refusal(type(self), error) from None

    def frozen_copy(self) -> Self:
        """Return a copy that nobody can change, for what is built with it."""
        copy = self.model_copy(deep=True)
        copy.__dict__.update({name: frozen(value) for name, value in copy.__dict__.items()})
        copy.__dict__[_FROZEN] = True
        return copy

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy that can be changed, with some values replaced.

        Parameters
        ----------
        update : mapping, optional
            New values by name; they are not checked.
        deep : bool
            Copy lists and dicts, too.
        """
        copy = super().model_copy(update=update, deep=deep)
        if copy.__dict__.pop(_FROZEN, False):
            copy.__dict__.update({name: thawed(value) for name, value in copy.__dict__.items()})
        return copy
