"""YAML files of settings: every scalar stays the text that the file has, with its line; nothing is guessed from how it looks.

YAML 1.1 reads 1e-4 as a text, yes and no as truth values, 010 as 8 and 1:30 as 90. Here a flag's own type decides what a text
means, as it does on the command line.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files.os_errors import reason

MAX_BYTES = 1 << 20
_MAX_VALUES, _MAX_DEPTH = 10_000, 16  # aliases of aliases grow without end
_NULLS = ("", "~", "null", "Null", "NULL")
_STANDARD = "tag:yaml.org,2002:"


class Plain(str):
    """A scalar without quotes."""


@dataclass(frozen=True)
class Setting:
    """A key of the file, its value (texts, None, lists and mappings of these) and its line."""

    key: str
    value: Any
    line: int
    written: str = ""  # the key as the file has it


def read_settings(path: Path, option: str = "config") -> list[Setting]:
    """Read the keys of a file in their order.

    Parameters
    ----------
    option : str
        What the file was given to, as errors name it.

    Raises
    ------
    ConfigError
        It cannot be read, is no mapping, or names a key twice.
    """
    import yaml

    text = _read_text(path, option)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{option}: expected YAML in {str(path)!r}, got: {_problem(error)}") from None
    except (RecursionError, ValueError) as error:
        got = "nesting without end" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"{option}: expected YAML in {str(path)!r}, got: {got}") from None
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise ConfigError(f"{option}: expected keys and values in {str(path)!r}, got {kind}")
    reader = _Reader(path)
    reader.refuse_tag(root)
    lines: dict[str, int] = {}
    settings = []
    for key_node, value_node in root.value:
        key, line = reader.key(key_node), key_node.start_mark.line + 1
        name = key.replace("-", "_")
        if name in lines:
            raise ConfigError(f"{path}:{line}: {key}: expected each key once, got it in line {lines[name]} too; remove one")
        lines[name] = line
        settings.append(Setting(name, reader.value(value_node, 0), line, key))
    return settings


def _read_text(path: Path, option: str) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{option}: expected a readable YAML file, got {str(path)!r}: not a regular file")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{option}: expected a readable YAML file, got {str(path)!r}: {reason(error)}") from None
    if len(data) > MAX_BYTES:
        most = f"at most {MAX_BYTES >> 10} KiB"
        raise ConfigError(f"{option}: expected a YAML file of {most}, got {str(path)!r}, which is larger")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{option}: expected YAML in {str(path)!r}, got byte 0x{data[error.start]:02x}, which is not UTF-8"
        ) from None


def _problem(error: Any) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{what} in line {mark.line + 1}" if mark is not None else str(what)


class _Reader:
    """From nodes to values, counted."""

    def __init__(self, path: Path) -> None:
        self._path, self._left = path, _MAX_VALUES

    def key(self, node: Any) -> str:
        """The name of a key."""
        import yaml

        if not isinstance(node, yaml.ScalarNode):
            where = f"{self._path}:{node.start_mark.line + 1}"
            raise ConfigError(f"{where}: expected a name before the colon, got a list or mapping")
        return str(node.value)

    def refuse_tag(self, node: Any) -> None:
        """Only YAML's own types are known."""
        if not node.tag.startswith(_STANDARD) or "python" in node.tag:
            where = f"{self._path}:{node.start_mark.line + 1}"
            raise ConfigError(f"{where}: expected a value without a tag, got {node.tag}")

    def value(self, node: Any, depth: int) -> Any:
        """The value of a node. Self-references and aliases of aliases end at a limit."""
        import yaml

        where = f"{self._path}:{node.start_mark.line + 1}"
        self._left -= 1
        if self._left < 0 or depth > _MAX_DEPTH:
            raise ConfigError(
                f"{where}: expected at most {_MAX_VALUES:,} values, {_MAX_DEPTH} deep, got more; are there aliases?"
            )
        self.refuse_tag(node)
        if isinstance(node, yaml.ScalarNode):
            if node.style is not None:
                return str(node.value)
            return None if node.value in _NULLS else Plain(node.value)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, depth + 1) for item in node.value]
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.key(key_node)
            if key in found:
                raise ConfigError(f"{self._path}:{key_node.start_mark.line + 1}: {key}: expected each key once, got it twice")
            found[key] = self.value(value_node, depth + 1)
        return found


_WHOLE = re.compile(r"[-+]?(0|[1-9](_?[0-9])*)")
_REAL = re.compile(r"[-+]?([0-9](_?[0-9])*)?(\.[0-9]*)?([eE][-+]?[0-9]+)?")
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def whole_number(text: str) -> int:
    """The whole number that a text is.

    Raises
    ------
    ValueError
        It is none: a fraction, a truth value, a number with leading zeros, ...
    """
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"expected a whole number, got {text!r}")
    return int(text)


def real_number(text: str) -> float:
    """The number that a text is, 1e-4 included.

    Raises
    ------
    ValueError
        It is none.
    """
    digits = any(c.isdigit() for c in text.partition("e")[0].partition("E")[0])
    octal = re.match(r"[-+]?0[0-9]", text)
    if not _REAL.fullmatch(text) or not digits or octal:
        raise ValueError(f"expected a number, got {text!r}")
    return float(text)


def truth_value(text: str) -> bool:
    """true, yes and on, or false, no and off.

    Raises
    ------
    ValueError
        It is something else.
    """
    if text.lower() not in _TRUTH:
        raise ValueError(f"expected true or false, got {text!r}")
    return _TRUTH[text.lower()]


def plain_value(value: Any) -> Any:
    """What stands inside a list or mapping, by how it looks: whole numbers, numbers, true and false, texts."""
    if isinstance(value, list):
        return [plain_value(item) for item in value]
    if isinstance(value, dict):
        return {key: plain_value(item) for key, item in value.items()}
    if not isinstance(value, Plain):
        return value
    for read in (whole_number, real_number):
        try:
            return read(value)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(value.lower(), str(value))
