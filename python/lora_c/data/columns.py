"""Columns of other names: which of them is the prompt, the completion, the messages, ...

``--columns prompt=question,completion=answer`` on the command line, ``columns={"prompt": "question", "completion": "answer"}``
in Python. What is named makes the record; what stands beside it and has another meaning is left aside, which is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, DataError, nearest
from .record_keys import HEEDED, KINDS, MEANT_FOR_THE_MODEL, NEEDED, keys_of

_OF_CLASSIFIERS = ("text_pair", "label")
_OF_TASKS = ("references", "question", "choices", "answer")
_OF_TRAINING = tuple(dict.fromkeys(key for keys in NEEDED.values() for key in keys))
TARGETS = tuple(
    dict.fromkeys([*_OF_TRAINING, *sorted(set().union(*HEEDED.values())), *_OF_CLASSIFIERS, *_OF_TASKS])
)  # fmt: skip


def parse_columns(text: str) -> dict[str, str]:
    """Return what "prompt=question,completion=answer" says.

    Raises
    ------
    ConfigError
        It is no list of NAME=COLUMN.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        target, equals, source = (piece.strip() for piece in part.partition("="))
        if not (target and equals and source):
            raise ConfigError(
                f"columns: expected NAME=COLUMN pairs such as prompt=question,completion=answer, got {text[:80]!r}"
            )
        if target in found:
            raise ConfigError(f"columns: expected each name once, got {target!r} twice in {text[:80]!r}")
        found[target] = source
    return check_columns(found)


def check_columns(columns: Any) -> dict[str, str]:
    """Return the mapping from names that have a meaning to the columns that hold it.

    Raises
    ------
    ConfigError
        A name has no meaning, or what is no text stands for a column.
    """
    if isinstance(columns, str):
        return parse_columns(columns)
    if not isinstance(columns, Mapping):
        raise ConfigError(f"columns: expected a mapping such as {{'prompt': 'question'}}, got a {type(columns).__name__}")
    for target, source in columns.items():
        if target not in TARGETS or (target in _OF_TASKS and source in _OF_TRAINING):
            turned = f"; write {source}={target}: the column's name stands last" if source in TARGETS else ""
            hint = ("" if target in TARGETS else nearest(str(target), TARGETS)) or turned
            raise ConfigError(f"columns: expected {', '.join(TARGETS)}, got {str(target)[:60]!r}{hint}")
        if not isinstance(source, str):
            raise ConfigError(f"columns: expected the name of a column for {target!r}, got {str(source)[:60]!r}")
    if not set(columns) & {*_OF_TRAINING, *_OF_TASKS}:
        got = ", ".join(columns) or "none"
        raise ConfigError(f"columns: expected one of {', '.join(_OF_TRAINING)} among the names, got {got}")
    return dict(columns)


def with_named_columns(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a record under the names that have a meaning, where what else it holds says nothing: of classifiers and tasks.

    Raises
    ------
    DataError
        It has no such column.
    """
    _need_columns(record, columns)
    return {**record, **{target: record[source] for target, source in columns.items()}}


def refuse_other_columns(columns: Mapping[str, str]) -> None:
    """Refuse names that only the data of a classifier or of a task have.

    Raises
    ------
    ConfigError
        There is one.
    """
    name = next((name for name in _OF_CLASSIFIERS if name in columns), None)
    if name is not None:
        raise ConfigError(
            f"columns: expected no {name!r} for a language model, got one; a classifier (task_type SEQ_CLS) learns labels"
        )
    name = next((name for name in _OF_TASKS if name in columns), None)
    if name is not None:
        raise ConfigError(
            f"columns: expected names of what is learned ({', '.join(_OF_TRAINING)}), got {name!r}, which a task alone reads "
            "(lora-c eval --task)"
        )


def with_columns(record: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return a record under the names that have a meaning, and the keys with another meaning that are left aside.

    Raises
    ------
    DataError
        It has no such column.
    """
    _need_columns(record, columns)
    named = {target: record[source] for target, source in columns.items()}
    kind = next(kind for kind in KINDS if set(NEEDED[kind]) & set(columns))
    form = "prompt messages" if kind == "prompt" and isinstance(named.get("prompt", record.get("prompt")), list) else kind
    own = {*NEEDED[kind], *HEEDED[form]}
    foreign = {*MEANT_FOR_THE_MODEL, *(key for keys in NEEDED.values() for key in keys)} - own
    rest = {key: value for key, value in record.items() if key not in columns and key not in columns.values()}
    out = {key for key in rest if str(key).strip().lower() in foreign}
    aside = [key for key in out if rest[key] not in (None, "", [], {})]
    aside += [key for key in columns if key in record and key not in columns.values()]  # another column bears the name
    return {key: value for key, value in rest.items() if key not in out} | named, sorted(aside)


def _need_columns(record: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    for target, source in columns.items():
        if source not in record:
            raise DataError(
                f"columns: expected the column {source!r} for {target!r}, got a record with the keys {keys_of(record)}"
            )
