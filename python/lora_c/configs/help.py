"""What help() shows of a configuration: its fields with type, default and meaning, and nothing of the library below.

A field's meaning is written once, in its description; a docstring that says more of a field keeps its own text, and gets the
default.
"""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_WIDTH = 100


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class ConfigType(ModelMetaclass):
    """The type of configuration classes; dir() of one lists what lora_c defines."""

    def __dir__(cls) -> list[str]:
        own = [base for base in cls.__mro__ if issubclass(base, BaseModel) and base.__module__.startswith("lora_c")]
        names = {name for base in own for name in vars(base) if not name.startswith("_")}
        return sorted(names - {"model_config"} | {"__doc__", "__module__"})


def describe_fields(cls: type[BaseModel]) -> None:
    """Give a class its docstring and a signature that can be read."""
    doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    described = set(re.findall(r"\w+", " ".join(re.findall(r"^(\w[\w, ]*?)(?: :|$)", doc, re.M)))) & set(cls.model_fields)
    for name in described:
        doc = re.sub(rf"^({name} : .*?)(, optional)?$", rf"\1{_default(cls.model_fields[name])}", doc, count=1, flags=re.M)
    rest = "\n".join(_entry(name, info) for name, info in cls.model_fields.items() if name not in described)
    if not described:
        doc += "\n\nParameters\n----------\n" + rest
    elif rest:
        head, line, tail = doc.partition("\n\nSource\n")
        doc = f"{head}\n{rest}{line}{tail}"
    cls.__doc__ = doc + "\n"
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, kind, default=info.default) for name, info in cls.model_fields.items()]
    cls.__signature__ = inspect.Signature(parameters)


def _entry(name: str, info: FieldInfo) -> str:
    text = textwrap.fill(info.description or "", _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return f"{name} : {_type_text(info.annotation)}{_default(info)}\n{text}"


def _default(info: FieldInfo) -> str:
    return ", optional" if info.default is None else f", default {info.default!r}"


def _type_text(annotation: Any) -> str:
    """A type as NumPy's docstrings write it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "{" + ", ".join(map(repr, parts)) + "}"
    if origin in (Union, types.UnionType):
        return " or ".join(_type_text(part) for part in parts if part is not type(None))
    if origin is list:
        return f"list of {_type_text(parts[0])}"
    if origin is dict:
        return "dict"
    if hasattr(annotation, "__metadata__"):
        return _type_text(parts[0])
    return str(getattr(annotation, "__name__", annotation))
