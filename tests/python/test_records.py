"""Data files: JSONL, JSON arrays, CSV, Parquet, gzip; every mistake named by file and line."""

from __future__ import annotations

import builtins
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

import lora_c as lc
from lora_c.data import json_records, streams
from lora_c.data.records import read_records
from lora_c.data.streams import text_blocks
from lora_c.errors import DataError
from lora_c.text.dropped_characters import DroppedCharacters

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
        (b'{}\n{"a": 1\n', r"a.jsonl:2: expected a JSON object, got '{\"a\": 1' \(Expecting ',' delimiter, column 8\)"),
        (b"{}\n3\n", "a.jsonl:2: expected a JSON object, got a int"),
        (b"[" * 100_000, "a.jsonl:1: expected a flat JSON object, got one nested too deeply"),
        (b'{"text": "a", "text": "b"}', "a.jsonl:1: expected a flat JSON object, got a name that occurs twice, 'text'"),
        (b'{"n": ' + b"9" * 5000 + b"}", "a.jsonl:1: expected a flat JSON object, got Exceeds the limit"),
        (b"\x00\x01\x02", "a.jsonl:1: expected a JSON object"),
    ],
)
def test_mistakes_are_named_by_file_and_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        values(tmp_path / "a.jsonl")
    assert "\n" not in str(error.value)


def test_huge_lines_and_items_are_refused_before_they_are_parsed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(json_records, "MAX_LINE", 1000)
    monkeypatch.setattr(streams, "READ_BYTES", 600)
    path = write(tmp_path / "a.jsonl", "{}\n" + json.dumps({"text": "x" * 2000}))
    with pytest.raises(DataError, match="a.jsonl:2: expected lines of at most"):
        values(path)
    bomb = write(tmp_path / "a.jsonl.gz", "x" * 1_000_000)
    with pytest.raises(DataError, match="a.jsonl.gz:1: expected lines of at most"):
        values(bomb)
    with pytest.raises(DataError, match="item 2: expected at most .* write one example per line"):
        values(write(tmp_path / "b.json", json.dumps([{"text": ""}, {"text": "x" * 4000}])))


@pytest.mark.parametrize("name", ["a.json.gz", "a.jsonl.gz", "a.txt.gz", "a.csv.gz"])
def test_gzip_that_unpacks_to_far_more_than_text_would_is_refused(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setattr(streams, "MAX_UNPACKED", 100_000)
    item = {"a.json.gz": "{},", "a.jsonl.gz": "{}\n", "a.txt.gz": "a\n", "a.csv.gz": "a\n"}[name]
    path = write(tmp_path / name, "[" * (name == "a.json.gz") + item * 300_000)
    with pytest.raises(DataError, match=r"unpacks to at most 200 times its size, got more than 1\d\d,\d00 b"):
        list(text_blocks(path) if "txt" in name else read_records(path))
    fine = write(tmp_path / name, "[" * (name == "a.json.gz") + item * 10_000 + "{}]" * (name == "a.json.gz"))
    list(text_blocks(fine) if "txt" in name else read_records(fine))


def test_an_array_is_read_item_by_item(tmp_path: Path, monkeypatch) -> None:
    """Whatever the size of the pieces that are read: the same items, and a damaged end is met only when it is reached."""
    items: list[dict[str, Any]] = [
        {"text": '🦙 \u2028 "quoted\\\\', "n": [1.5e-3, -7, 12345678901234567890, True, None], "deep": [[{}], [[]]]},
        {},
        {"text": "x" * 3000, "tail": "ü" * 50},
    ] * 3
    for ascii_only in (True, False):
        for indent in (None, 2):
            text = json.dumps(items, ensure_ascii=ascii_only, indent=indent)
            path = write(tmp_path / "a.json", text)
            for size in (1, 3, 17, 1000, 1 << 20):
                monkeypatch.setattr(streams, "READ_BYTES", size)
                assert values(path) == items
    reader = read_records(write(tmp_path / "b.json", '[{"text": "a"}, {"text": "b"}, {"te'))
    assert [record["text"] for _, record in (next(reader), next(reader))] == ["a", "b"]
    with pytest.raises(DataError, match="b.json: expected a JSON object, got .*column 33"):
        next(reader)


@pytest.mark.parametrize(
    "text",
    ["[{}", "[{},", "[{},]", "[{} {}]", "[,{}]", "[{}] x", "[{}]]", "[{}},{}]", '[{"a": tru}]', '[{"a": "\\x"}]', "[1]"],
)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_damaged_arrays_are_refused_as_json_refuses_them(tmp_path: Path, monkeypatch, text: str, size: int) -> None:
    monkeypatch.setattr(streams, "READ_BYTES", size)
    with pytest.raises(DataError, match="a.json.*: expected a JSON object, got") as error:
        values(write(tmp_path / "a.json", text))
    try:
        json.loads(text)
    except json.JSONDecodeError as wrong:
        assert f"line {wrong.lineno}, column" in str(error.value)
    assert values(write(tmp_path / "a.json", " [\n] \n")) == []


def test_a_file_that_is_one_object(tmp_path: Path) -> None:
    pretty = json.dumps(ROWS[0], indent=1)
    assert values(write(tmp_path / "a.json", pretty)) == [ROWS[0]]
    assert values(write(tmp_path / "a.json", "\n" + json.dumps(ROWS[0]))) == [ROWS[0]]
    assert values(write(tmp_path / "a.json", "\n\n" + "\n".join(map(json.dumps, ROWS)))) == ROWS
    for table in ({"data": ROWS}, {"version": 1, "train": ROWS, "validation": ROWS}, {"train": {"0": ROWS[0]}}):
        for indent in (None, 2):
            with pytest.raises(DataError, match=r"got one object that holds (data|train); write|train, validation; write"):
                values(write(tmp_path / "a.json", json.dumps(table, indent=indent)))
    with pytest.raises(DataError, match=r"one object per line, or an array of objects, can be read, line 4, column 1"):
        values(write(tmp_path / "a.json", pretty + "\n" + pretty))


class TestTables:
    def test_columns_are_keys(self, tmp_path: Path) -> None:
        text = 'prompt,completion\r\n"a, ""b""","two\r\nlines"\r\n\r\nc,\r\n'
        expected = [{"prompt": 'a, "b"', "completion": "two\nlines"}, {"prompt": "c", "completion": ""}]
        for name in ("a.csv", "a.csv.gz"):
            path = write(tmp_path / name, text, "utf-8-sig")
            assert list(read_records(path)) == [(f"{path}:2", expected[0]), (f"{path}:5", expected[1])]
        path = write(tmp_path / "a.tsv", "prompt\tcompletion\na, b\tc\n")
        assert values(path) == [{"prompt": "a, b", "completion": "c"}]
        assert values(write(tmp_path / "empty.csv", "")) == []

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (",text\n0,a\n1,b\n", [{"Unnamed: 0": "0", "text": "a"}, {"Unnamed: 0": "1", "text": "b"}]),
            ("text,\na,\n", [{"text": "a", "Unnamed: 1": ""}]),
        ],
    )
    def test_columns_without_a_name_are_called_as_pandas_calls_them(self, tmp_path: Path, text: str, expected: object) -> None:
        assert values(write(tmp_path / "a.csv", text)) == expected

    def test_long_cells(self, tmp_path: Path) -> None:
        assert values(write(tmp_path / "a.csv", "text\n" + "x" * 200_000)) == [{"text": "x" * 200_000}]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("prompt,completion\na,b\nc\n", r"a.csv:3: expected 2 columns \(prompt, completion\), got 1"),
            ("prompt,completion\na,b,c\n", "a.csv:2: expected 2 columns .*, got 3"),
            ("text,text\na,b\n", "a.csv:1: expected a name of its own for every column, got text"),
            ("text,text,\na,b,c\n", "a.csv:1: expected a name of its own for every column, got text twice"),
            ('text\n"a', "a.csv:2: expected a row of a table, got: unexpected end of data"),
            ('text\n"a"b', "a.csv:2: expected a row of a table"),
        ],
    )
    def test_mistakes_are_named_by_file_and_line(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            values(write(tmp_path / "a.csv", text))


def test_other_kinds_of_files_are_refused_by_name(tmp_path: Path) -> None:
    for name, data in (("a.zst", b"\x28\xb5"), ("a.md", b"# Title"), ("a.zip", b"PK"), ("data", b"text")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name}: expected a file ending in .jsonl, .* got '?(.zst|.md|.zip|no ending)"):
            values(tmp_path / name)
    assert values(write(tmp_path / "lines.data", '{"text": "a"}')) == [{"text": "a"}]


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "other"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match=f"{name}: expected a regular file, got a named pipe; write what comes out"):
            values(tmp_path / name)
    (tmp_path / "link.jsonl").symlink_to("link.jsonl")
    with pytest.raises(DataError, match="symbolic links"):
        values(tmp_path / "link.jsonl")


def test_every_line_end_is_a_line_feed(tmp_path: Path, monkeypatch) -> None:
    for size in (1, 2, 1 << 20):
        monkeypatch.setattr(streams, "READ_BYTES", size)
        for name in ("a.txt", "a.txt.gz"):
            path = write(tmp_path / name, "one\r\ntwo\rthree\n\r\r\nü🦙\r", "utf-8")
            assert "".join(text_blocks(path)) == "one\ntwo\nthree\n\n\nü🦙\n"
    monkeypatch.undo()
    assert "".join(text_blocks(write(tmp_path / "b.txt", "a", "utf-8-sig"))) == "a"
    (tmp_path / "c.txt").write_bytes("ü".encode()[:1])
    with pytest.raises(DataError, match="c.txt: expected UTF-8 text, got byte 0xc3"):
        list(text_blocks(tmp_path / "c.txt"))


def test_damaged_gzip(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", json.dumps(ROWS[0]) * 50)
    whole = path.read_bytes()
    for data in (b"no gzip", whole[:20], whole[:-12] + b"\xff" * 12, whole[:15] + b"\xff" * 20 + whole[35:]):
        path.write_bytes(data)
        with pytest.raises(DataError, match="a.jsonl.gz"):
            values(path)


def test_unreadable_file(tmp_path: Path, monkeypatch) -> None:
    path = write(tmp_path / "a.jsonl", "{}")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
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


def test_characters_that_the_tokenizer_drops_are_told(tmp_path: Path) -> None:
    tokenizer = lc.load_model("demo", progress=False).tokenizer
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "Bär", "completion": " x"}\n{"prompt": "a\\nb", "completion": " y"}\n'
        '{"prompt": "a", "completion": " z"}\n',
        encoding="utf-8",
    )
    with pytest.warns(lc.LoraCWarning, match=r"2 of 3 examples hold characters .* drops \('\\n', 'ä'\)"):
        lc.load_dataset(tmp_path / "a.jsonl", tokenizer)
    (tmp_path / "a.txt").write_text("Ein Bär.", encoding="utf-8")
    with pytest.warns(lc.LoraCWarning, match=r"a.txt: the text holds characters .* drops \('ä'\)"):
        lc.load_dataset(tmp_path / "a.txt", tokenizer)
    with pytest.raises(DataError, match="got an open file"), open(tmp_path / "a.jsonl", encoding="utf-8") as file:
        lc.load_dataset(file, tokenizer)


@pytest.mark.parametrize("text", ["Bär 你好 \n\t😀\u200b\ufffd\x00", "plain"])
def test_a_tokenizer_of_all_bytes_drops_nothing(stories: Path, text: str) -> None:
    assert DroppedCharacters(lc.load_model(stories, progress=False).tokenizer).of(text) == set()
