"""Data that is in memory already: an iterable of records or texts, a table of pandas, polars or Arrow, a set of `datasets`.

What an object is is seen from its methods, so that none of these packages is imported for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from ..errors import DataError, shorten
from .globs import has_magic
from .records import SUFFIXES
from .tables import without_nulls

Item = tuple[str, dict[str, Any] | DataError]
_ROWS = 1024  # of a table that are turned into records at once


def is_in_memory(data: Any) -> bool:
    """Whether something is data itself, and no path or list of paths to it.

    A list of texts is one of paths where one of them is there, ends like a data file or is a pattern, or where none has a
    space in it; so a name that is mistyped is no text to train on.
    """
    if isinstance(data, (str, os.PathLike)):
        return False
    if not isinstance(data, (list, tuple)) or not data:
        return not isinstance(data, (list, tuple))
    if not all(isinstance(item, (str, os.PathLike)) for item in data):
        return True
    return not any(map(_is_path, data)) and any(any(map(str.isspace, text)) for text in data)


def _is_path(item: str | os.PathLike[str]) -> bool:
    if not isinstance(item, str) or item == "-":
        return True
    is_short = len(item) < 4096 and "\n" not in item and "\0" not in item
    ends = item.lower().removesuffix(".gz").endswith(SUFFIXES)
    return is_short and (ends or os.path.lexists(item) or (has_magic(item) and not any(map(str.isspace, item))))


def describe(data: Any) -> str:
    """What the data is called in messages and reports."""
    kind = type(data).__name__
    try:
        return f"{kind} of {len(data):,} records"
    except TypeError:  # a generator
        return f"records of a {kind}"


def read_in_memory(data: Any) -> Iterator[Item]:
    """Yield (record and its number, counted from 1, record) of everything that iterates over mappings or texts, once.

    Raises
    ------
    DataError
        It is nothing of the kind.
    """
    for number, item in enumerate(_rows(data), 1):
        where = f"record {number}"
        if isinstance(item, str):
            yield where, {"text": str(item)}
        elif isinstance(item, Mapping):
            yield where, item if type(item) is dict else dict(item)
        else:
            yield where, DataError(f"{where}: expected a mapping or a text, got a {type(item).__name__}{_hint(item)}")


def _hint(item: Any) -> str:
    if isinstance(item, list) and item and all(isinstance(turn, Mapping) and "role" in turn for turn in item):
        return '; a conversation is {"messages": [...]}'
    if isinstance(item, os.PathLike):
        return "; give paths as a list"
    return ""


def of_split(data: Any, split: str | Sequence[str]) -> Any:
    """Return the data of a split, where an object holds several by name as the `DatasetDict` of `datasets` does, else itself.

    Raises
    ------
    DataError
        It is a single mapping, or has no such split.
    """
    if not isinstance(data, Mapping):
        return data
    if not data or not all(hasattr(part, "column_names") for part in data.values()):
        raise DataError(
            f"data: expected records, got one mapping with the keys {shorten(data)}; give a list of mappings, one for each "
            "example"
        )
    wanted = [split] if isinstance(split, str) else split
    found = next((name for name in wanted if name in data), None)
    if found is None:
        raise DataError(f"data: expected the split {' or '.join(wanted)}, got only {shorten(data)}; give one of them")
    return data[found]


def _rows(data: Any) -> Iterator[Any]:
    if hasattr(data, "iloc") and hasattr(data, "columns"):  # pandas.DataFrame
        return _rows_of_frame(data)
    if hasattr(data, "iter_rows"):  # polars.DataFrame
        return map(without_nulls, data.iter_rows(named=True))
    if hasattr(data, "to_batches") and hasattr(data, "schema"):  # pyarrow.Table
        return map(without_nulls, chain.from_iterable(batch.to_pylist() for batch in data.to_batches(_ROWS)))
    if hasattr(data, "with_format") and hasattr(data, "column_names"):  # datasets.Dataset, datasets.IterableDataset
        return map(without_nulls, data.with_format(None))
    if hasattr(data, "read"):
        got = f"got an open file ({data!r}); give its path"
        raise DataError(f"data: expected a path, or an iterable of mappings or texts, {got}")
    if isinstance(data, (str, bytes, bytearray)) or not isinstance(data, Iterable):
        raise DataError(
            f"data: expected an iterable of mappings or texts, got a {type(data).__name__}; [data] is a list of one example"
            if isinstance(data, (str, bytes, bytearray))
            else f"data: expected a path, or an iterable of mappings or texts, got a {type(data).__name__}"
        )
    return iter(data)


def _rows_of_frame(frame: Any) -> Iterator[dict[str, Any]]:
    """Rows of a pandas table as records, without the cells that are empty (NaN, NaT, None, pandas.NA)."""
    names = [str(name) for name in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"data: expected a name of its own for every column, got {shorten(twice)} twice")
    for begin in range(0, len(frame), _ROWS):
        part = frame.iloc[begin : begin + _ROWS]
        columns = [zip(part.iloc[:, i], part.iloc[:, i].isna(), strict=True) for i in range(len(names))]
        for cells in zip(*columns, strict=True):
            yield {name: _plain(cell) for name, (cell, is_empty) in zip(names, cells, strict=True) if not is_empty}


def _plain(value: Any) -> Any:
    """A cell as JSON has it: NumPy's arrays are lists, its numbers numbers; what is null inside is absent, as in Parquet."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
