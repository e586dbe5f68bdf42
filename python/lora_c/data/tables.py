"""Tables to records, a column to a key: CSV and TSV with a first row of names, and Parquet."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError, shorten
from ..files.regular_file import check_regular
from .streams import text_lines

MAX_CELL = 1 << 26  # characters
_DELIMITERS = {".csv": ",", ".tsv": "\t"}

Record = tuple[str, dict[str, Any] | DataError]  # an error where the next record can still be read


def read_csv(path: Path, kind: str) -> Iterator[Record]:
    """Yield (file:line, record); every value is a text, and an empty one stays empty."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))  # of the whole process; it is only ever raised
    rows = csv.reader(text_lines(path), delimiter=_DELIMITERS[kind], strict=True)
    _, names = _row(rows, path)
    if not names:
        return
    names = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(names)]  # as pandas reads the index that it writes
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}:1: expected a name of its own for every column, got {shorten(twice)} twice")
    while True:
        line, cells = _row(rows, path)
        if not cells:
            return
        if len(cells) != len(names):
            wrong = f"expected {len(names)} columns ({shorten(names)}), got {len(cells)}; put a cell with commas into quotes"
            yield f"{path}:{line}", DataError(f"{path}:{line}: {wrong}")
        else:
            yield f"{path}:{line}", dict(zip(names, cells, strict=True))


def _row(rows: Any, path: Path) -> tuple[int, list[str]]:
    """(its line, the next row that is not empty); an empty one at the end."""
    while True:
        line = rows.line_num + 1
        try:
            row: list[str] | None = next(rows, None)
        except csv.Error as error:
            raise DataError(f"{path}:{line}: expected a row of a table, got: {error}") from None
        if row is None or row:
            return line, row or []


def read_parquet(path: Path) -> Iterator[Record]:
    """Yield (file and row, record); what is null in a row is absent from its record, at every depth."""
    check_regular(path, DataError)
    try:
        import pyarrow as arrow  # type: ignore[import-untyped]
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]
    except ImportError:
        raise DataError(
            f"{path}: expected the package pyarrow to read Parquet, got an installation without it; pip install 'lora-c[data]'"
        ) from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", without_nulls(record)
    except (arrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: expected a Parquet file, got: {reason} (after row {number})") from None


def without_nulls(value: Any) -> Any:
    """A value without what is null in it, at every depth."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
