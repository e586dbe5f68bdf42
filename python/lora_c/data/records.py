"""Files to records: one dict per example, named by file and line so that an error can say where it is.

JSONL (one object per line), a JSON array of objects, CSV and TSV, and Parquet (needs pyarrow); all but Parquet may be
compressed with gzip.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from .json_records import read_json
from .standard_input import STANDARD_INPUT, kind_of_input
from .streams import BOM, DataFile
from .tables import read_csv, read_parquet

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".txt")


def kind_of(path: Path) -> str:
    """Return the suffix that says what a file holds, without .gz; standard input says it by how it begins."""
    if path == STANDARD_INPUT:
        return kind_of_input()
    return path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, record) of every example; `where` is file:line, or file and the number in it.

    Raises
    ------
    DataError
        Naming the file and the line that cannot be read.
    """
    for where, record in read_good_and_bad(path):
        if isinstance(record, DataError):
            raise record
        yield where, record


def read_good_and_bad(path: Path) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    """As `read_records`; a line that is bad, behind which the next one can be read, is an error among the records."""
    kind = kind_of(path)
    if kind == ".parquet":
        return read_parquet(path)
    if kind in (".csv", ".tsv"):
        return read_csv(path, kind)
    if kind not in SUFFIXES:
        _refuse_other_kinds(path)
    return read_json(path, is_lines=kind != ".json")


def _refuse_other_kinds(path: Path) -> None:
    """A name that promises nothing is enough for JSON, and for nothing else."""
    with DataFile(path) as file:
        first = file.read(256).removeprefix(BOM).lstrip()[:1]
    if first not in (b"{", b""):
        raise DataError(
            f"{path}: expected a file ending in {', '.join(SUFFIXES)} (all but Parquet also with .gz), got "
            f"{path.suffix or 'no ending'!r}; convert it, or give it the ending that says what it holds"
        )
