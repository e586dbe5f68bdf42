"""Files to records: one dict per example, named by file and line so that an error can say where it is.

JSONL (one object per line), a JSON array of objects, Parquet (needs pyarrow), and plain text; all but Parquet may be
compressed with gzip.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import DataError
from ..os_errors import reason

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".txt")
MAX_LINE = 1 << 26  # bytes of one JSONL line
MAX_ARRAY = 1 << 30  # bytes of a file that is one JSON array, or of one text
READ_BYTES = 1 << 20  # at a time: a reader takes the memory for what is asked for, however short the file
_BOM = b"\xef\xbb\xbf"


def data_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files that are meant: one, several, or those in a folder in the order of their names.

    Raises
    ------
    DataError
        One does not exist, or a folder holds none.
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    files: list[Path] = []
    for path in map(lambda p: Path(str(p)), given):
        if os.path.isdir(path):
            inside = sorted(p for p in path.iterdir() if kind_of(p) in SUFFIXES and p.is_file() and not p.name.startswith("."))
            if not inside:
                raise DataError(f"data: expected files ending in {', '.join(SUFFIXES)} in {str(path)!r}, got none")
            files += inside
        elif os.path.isfile(path):
            files.append(path)
        else:
            raise DataError(f"data: expected a .jsonl, .json, .parquet or .txt file, got {str(path)!r}, which does not exist")
    if not files:
        raise DataError("data: expected at least one file, got an empty list")
    return files


def kind_of(path: Path) -> str:
    """Return the suffix that says what a file holds, without .gz."""
    return path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, record) of every example; `where` is file:line, or file and the number in it.

    Raises
    ------
    DataError
        Naming the file and the line that cannot be read.
    """
    if kind_of(path) == ".parquet":
        return _read_parquet(path)
    return _read_json(path)


def read_text(path: Path) -> str:
    """Return a plain text file."""
    with _open(path) as file:
        return _decode(_read_whole(file, path), str(path))


def _open(path: Path) -> IO[bytes]:
    try:
        return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb")  # type: ignore[return-value]
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, got: {reason(error)}") from None


def _take(read: Any, size: int, path: Path) -> bytes:
    """One read of a plain or compressed file."""
    try:
        data: bytes = read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a readable file, got: {reason(error)}") from None
    return data


def _read_whole(file: IO[bytes], path: Path) -> bytes:
    data = bytearray()
    while piece := _take(file.read, READ_BYTES, path):
        data += piece
        if len(data) > MAX_ARRAY:
            raise DataError(
                f"{path}: expected at most {MAX_ARRAY >> 20} MiB in one piece, got more; write one example per line (JSONL)"
            )
    return bytes(data.removeprefix(_BOM))


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: expected UTF-8 text, got byte 0x{data[error.start]:02x}; save the file as UTF-8") from None


def _read_json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with _open(path) as file:
        first = _take(file.read, 256, path).removeprefix(_BOM).lstrip()[:1]
        _take(file.seek, 0, path)
        if kind_of(path) == ".json" and first == b"[":
            yield from _read_array(path, file)
        else:
            yield from _read_lines(path, file)


def _read_lines(path: Path, file: IO[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    while line := _take(file.readline, MAX_LINE + 1, path):
        number += 1
        where = f"{path}:{number}"
        if len(line) > MAX_LINE:
            raise DataError(f"{where}: expected lines of at most {MAX_LINE >> 20} MiB, got a longer one; is this JSONL?")
        text = _decode(line.removeprefix(_BOM) if number == 1 else line, where)
        if text.strip():
            yield where, _need_object(_parse(text, where), where)


def _read_array(path: Path, file: IO[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    items = _parse(_decode(_read_whole(file, path), str(path)), str(path))
    for number, item in enumerate(items, 1):
        where = f"{path}, item {number}"
        yield where, _need_object(item, where)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text.rstrip() else ""
        got = text.strip()[:40]
        raise DataError(f"{where}: expected a JSON object, got {got!r} ({error.msg}{line}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        reason = "one nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{where}: expected a flat JSON object, got {reason}") from None


def _need_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, got a {type(value).__name__}")
    return value


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Columns are the keys; what is null in a row is absent from its record, at every depth."""
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
                    yield f"{path}, row {number}", _without_nulls(record)
    except (arrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: expected a Parquet file, got: {reason} (after row {number})") from None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
