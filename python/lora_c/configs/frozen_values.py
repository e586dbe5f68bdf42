"""Lists and dicts of a configuration that a model or a trainer holds: nobody can change them, and copies are plain ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ConfigError


def _refusing(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **options: Any) -> Any:
        raise ConfigError(
            f"{name}: expected a list or dict of your own, got one of a configuration held by a model or a trainer, where "
            "a change would do nothing; change a copy (config.model_copy()) before you give it away"
        )

    return method


class FrozenList(list[Any]):
    """A list that stays as it is; copies are plain lists."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return list, (thawed(self),)


class FrozenDict(dict[Any, Any]):
    """A dict that stays as it is; copies are plain dicts."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (thawed(self),)


for _name in ("__setitem__", "__delitem__", "__iadd__", "__imul__", "append", "clear", "extend", "insert", "pop", "remove",
              "reverse", "sort"):  # fmt: skip
    setattr(FrozenList, _name, _refusing(_name.strip("_")))
for _name in ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(FrozenDict, _name, _refusing(_name.strip("_")))


def frozen(value: Any) -> Any:
    """Lists and dicts that stay as they are, with the same content."""
    if isinstance(value, list):
        return FrozenList(map(frozen, value))
    return FrozenDict({key: frozen(item) for key, item in value.items()}) if isinstance(value, dict) else value


def thawed(value: Any) -> Any:
    """Plain lists and dicts with the same content."""
    if isinstance(value, list):
        return [thawed(item) for item in value]
    return {key: thawed(item) for key, item in value.items()} if isinstance(value, dict) else value
