"""Data files: JSONL, JSON arrays, Parquet, gzip; every mistake named by file and line."""

from __future__ import annotations

import builtins
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lora_c.data import records
from lora_c.data.records import data_files, read_records, read_text
from lora_c.errors import DataError

ROWS = [{"text": "Grüße 日本 🦙"}, {"prompt": "a", "completion": "b"}]


def values(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in read_records(path)]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.jsonl.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lines(tmp_path: Path, name: str, encoding: str) -> None:
    text = "\n".join(json.dumps(row, ensure_ascii=name == "a.json") for row in ROWS)
    path = write(tmp_path / name, text.replace("\n", "\r\n\n  \n"), encoding)
    assert list(read_records(path)) == [(f"{path}:1", ROWS[0]), (f"{path}:4", ROWS[1])]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_arrays(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "\n " + json.dumps(ROWS, indent=1), "utf-8-sig")
    assert list(read_records(path)) == [(f"{path}, item 1", ROWS[0]), (f"{path}, item 2", ROWS[1])]
    write(path, '[{"text": "a"}, 3]')
    with pytest.raises(DataError, match="item 2: expected a JSON object, got a int"):
        values(path)
    write(path, '[{"text": "a"},\n {"text": b}]')
    with pytest.raises(DataError, match=r"a.json(.gz)?: expected a JSON object, .*line 2, column 11"):
        values(path)


def test_line_breaks_of_unicode_do_not_split_a_record(tmp_path: Path) -> None:
    row = {"text": "one\u2028two\u0085three\x0b"}
    assert values(write(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=False) + "\n")) == [row]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"text": 1}\n{"text": "\xff"}\n', r"a.jsonl:2: expected UTF-8 text, got byte 0xff"),
        ('{"text": "a"}'.encode("utf-16"), r"a.jsonl:1: expected UTF-8 text, got byte 0xff; save the file as UTF-8"),
        (b"{}\n{}\nnot json\n", r"a.jsonl:3: expected a JSON object, got 'not json' \(Expecting value, column 1\)"),
        (b"{}\n3\n", "a.jsonl:2: expected a JSON object, got a int"),
        (b"[" * 100_000, "a.jsonl:1: expected a flat JSON object, got one nested too deeply"),
        (b'{"n": ' + b"9" * 5000 + b"}", "a.jsonl:1: expected a flat JSON object, got Exceeds the limit"),
        (b"\x00\x01\x02", "a.jsonl:1: expected a JSON object"),
    ],
)
def test_mistakes_are_named_by_file_and_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        values(tmp_path / "a.jsonl")
    assert "\n" not in str(error.value)


def test_huge_lines_and_arrays_are_refused_before_they_are_parsed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE", 1000)
    monkeypatch.setattr(records, "MAX_ARRAY", 1000)
    path = write(tmp_path / "a.jsonl", "{}\n" + json.dumps({"text": "x" * 2000}))
    with pytest.raises(DataError, match="a.jsonl:2: expected lines of at most"):
        values(path)
    bomb = write(tmp_path / "a.jsonl.gz", "x" * 1_000_000)
    with pytest.raises(DataError, match="a.jsonl.gz:1: expected lines of at most"):
        values(bomb)
    with pytest.raises(DataError, match="write one example per line"):
        values(write(tmp_path / "b.json", json.dumps([{"text": "x" * 2000}])))
    with pytest.raises(DataError, match="at most"):
        read_text(write(tmp_path / "c.txt.gz", "x" * 2000))


def test_damaged_gzip(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", json.dumps(ROWS[0]) * 50)
    whole = path.read_bytes()
    for data in (b"no gzip", whole[:20], whole[:-12] + b"\xff" * 12, whole[:15] + b"\xff" * 20 + whole[35:]):
        path.write_bytes(data)
        with pytest.raises(DataError, match="a.jsonl.gz"):
            values(path)


def test_files_and_folders(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.parquet", "c.txt.gz", "notes.md", ".hidden.jsonl"):
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in data_files(tmp_path)] == ["a.parquet", "b.jsonl", "c.txt.gz"]
    both = [tmp_path / "b.jsonl", str(tmp_path / "a.parquet")]
    assert [p.name for p in data_files(both)] == ["b.jsonl", "a.parquet"]
    (tmp_path / "empty").mkdir()
    for wrong, message in [
        (tmp_path / "empty", "expected files ending in"),
        (tmp_path / "none", "does not exist"),
        ([], "at least one file"),
    ]:
        with pytest.raises(DataError, match=message):
            data_files(wrong)


def test_unreadable_file(tmp_path: Path, monkeypatch) -> None:
    path = write(tmp_path / "a.jsonl", "{}")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(DataError, match="a.jsonl: expected a readable file, got: Permission denied"):
        values(path)


class TestParquet:
    @pytest.fixture
    def write_table(self, tmp_path: Path) -> Any:
        arrow = pytest.importorskip("pyarrow", reason="needs pyarrow (the data extra)")
        import pyarrow.parquet as parquet

        def write(rows: list[dict[str, Any]], **options: Any) -> Path:
            parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet", **options)
            return tmp_path / "a.parquet"

        return write

    def test_nested_rows_lose_their_nulls(self, write_table) -> None:
        call = {"function": {"name": "f", "arguments": {"x": 1}}}
        rows = [
            {"messages": [{"role": "user", "content": "ü"}, {"role": "assistant", "tool_calls": [call]}], "tools": None},
            {"messages": [{"role": "assistant", "content": "ok"}], "tools": [{"name": "f"}]},
        ]
        path = write_table(rows)
        expected = [{k: v for k, v in row.items() if v is not None} for row in rows]
        assert list(read_records(path)) == [(f"{path}, row {i}", row) for i, row in enumerate(expected, 1)]

    def test_many_rows_and_row_groups(self, write_table) -> None:
        rows = [{"text": f"row {i}"} for i in range(1000)]
        assert values(write_table(rows, row_group_size=77, compression="zstd")) == rows

    def test_damaged_files(self, write_table) -> None:
        path = write_table([{"text": "x" * 50}] * 100)
        whole = path.read_bytes()
        for data in (b"", b"PAR1", whole[:50], whole[:-5], b"\0" * len(whole), whole[:10] + b"\xff" * 40 + whole[50:]):
            path.write_bytes(data)
            with pytest.raises(DataError, match="a.parquet: expected a Parquet file, got"):
                values(path)

    def test_without_pyarrow_the_way_out_is_named(self, tmp_path: Path, monkeypatch) -> None:
        real = builtins.__import__

        def without(name: str, *args: Any) -> Any:
            if name.startswith("pyarrow"):
                raise ImportError(name)
            return real(name, *args)

        monkeypatch.setattr(builtins, "__import__", without)
        (tmp_path / "a.parquet").write_bytes(b"")
        with pytest.raises(DataError, match=r"expected the package pyarrow.*pip install 'lora-c\[data\]'"):
            values(tmp_path / "a.parquet")
