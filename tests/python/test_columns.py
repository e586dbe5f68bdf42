"""Columns of other names, bad examples that are skipped, standard input and patterns: what is read as data."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_c.data import find_files, load_dataset
from lora_c.data.columns import check_columns, parse_columns, with_columns
from lora_c.data.known_columns import known_columns, way_out_of
from lora_c.data.records import read_records
from lora_c.demo.run import BASE_MODEL
from lora_c.errors import ConfigError, DataError
from lora_c.notices import LoraCWarning
from lora_c.text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*the tokenizer has no token for:lora_c.notices.LoraCWarning")  # of the demo

PAIR, QA = {"prompt": "question", "completion": "answer"}, {"prompt": "q", "completion": "a"}
MADE = {"prompt": "a", "completion": "b"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(BASE_MODEL)


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def ids(data: Any) -> list[list[int]]:
    return [sample.input_ids.tolist() for sample in data]


class TestColumns:
    @pytest.mark.parametrize(
        ("record", "columns", "expected", "aside"),
        [
            ({"question": "a", "answer": "b", "id": 3}, PAIR, {"prompt": "a", "completion": "b", "id": 3}, []),
            ({"prompt": "a", "answer": "b"}, {"completion": "answer"}, {"prompt": "a", "completion": "b"}, []),
            ({"q": "a", "a": "b", "context": "c"}, QA, MADE, ["context"]),
            ({"q": "a", "a": "b", "messages": [1]}, QA, MADE, ["messages"]),
            ({"dialog": [1], "tools": [2]}, {"messages": "dialog"}, {"messages": [1], "tools": [2]}, []),
            ({"q": "a", "a": "b", "prompt": "c"}, QA, MADE, ["prompt"]),
            ({"prompt": "b", "completion": "a"}, {"prompt": "completion", "completion": "prompt"}, MADE, []),
            ({"body": "a", "title": "b"}, {"text": "body"}, {"text": "a", "title": "b"}, []),
        ],
    )  # fmt: skip
    def test_what_is_named_makes_the_record(self, record: Any, columns: Any, expected: Any, aside: list[str]) -> None:
        assert with_columns(record, columns) == (expected, aside)

    def test_texts_and_mappings_say_the_same(self) -> None:
        assert parse_columns("prompt=question, completion = answer") == check_columns(PAIR) == PAIR
        assert parse_columns("text=a=b") == {"text": "a=b"}

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ("prompt", "expected NAME=COLUMN pairs such as prompt=question,completion=answer, got 'prompt'"),
            ("prompt=", "expected NAME=COLUMN pairs"),
            ("prompt=a,prompt=b", "expected each name once, got 'prompt' twice"),
            ("promt=a", "got 'promt', did you mean 'prompt'"),
            ("question=prompt", "got 'question'; write prompt=question"),
            ({"prompt": 3}, "expected the name of a column for 'prompt', got '3'"),
            ("system=a", "expected one of messages, .* among the names, got system"),
            (3, "expected a mapping such as .* got a int"),
            ({}, "among the names, got none"),
        ],
    )
    def test_other_columns_are_refused(self, columns: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=f"^columns: .*{message}"):
            check_columns(columns)

    @pytest.mark.parametrize(
        ("record", "columns"),
        [
            ({"question": "", "answer": ""}, PAIR),
            ({"Question": "", "Answer": ""}, {"prompt": "Question", "completion": "Answer"}),
            ({"query": "", "response": "", "id": 1}, {"prompt": "query", "completion": "response"}),
            ({"input": "", "target": ""}, {"prompt": "input", "completion": "target"}),
            ({"input": "", "output": ""}, {"prompt": "input", "completion": "output"}),
            ({"prompt": "", "response": ""}, {"prompt": "prompt", "completion": "response"}),
            ({"user": "", "assistant": ""}, {"prompt": "user", "completion": "assistant"}),
            ({"problem": "", "solution": ""}, {"prompt": "problem", "completion": "solution"}),
            ({"instruction": "", "response": ""}, {"instruction": "instruction", "output": "response"}),
            (
                {"instruction": "", "context": "", "response": "", "category": ""},
                {"instruction": "instruction", "input": "context", "output": "response"},
            ),
            (
                {"question": "", "context": "", "answer": ""},
                {"instruction": "question", "input": "context", "output": "answer"},
            ),
            ({"content": ""}, {"text": "content"}),
            ({"dialog": [{"role": "user", "content": "x"}]}, {"messages": "dialog"}),
            ({"chat": [{"from": "human", "value": "x"}]}, {"conversations": "chat"}),
            ({"foo": "", "bar": ""}, {}),
        ],
    )
    def test_known_pairs_are_refused_with_the_flag_that_reads_them(
        self, tmp_path: Path, tokenizer: Tokenizer, record: Any, columns: dict[str, str]
    ) -> None:
        assert known_columns(record) == columns
        path = write(tmp_path / "a.jsonl", record)
        flag = ",".join(f"{name}={column}" for name, column in columns.items())
        with pytest.raises(DataError, match=r"^[^;]*a.jsonl:1: expected ") as error:
            load_dataset(path, tokenizer)
        assert str(error.value).endswith(f"; give --columns {flag} (in Python: columns={columns})") == bool(columns)
        if columns and "dialog" not in record and "chat" not in record:
            filled = {key: f"{key} x" for key in record}
            kinds = load_dataset(write(path, filled), tokenizer, columns=flag)
            assert ids(kinds) == ids(load_dataset([with_columns(filled, columns)[0]], tokenizer)) and len(kinds) == 1

    def test_names_with_spaces_are_quoted_for_the_shell(self) -> None:
        assert "--columns 'prompt=Question ,completion=answer'" in way_out_of({"Question ": "", "answer": ""})

    def test_a_column_that_is_not_there_is_named_by_its_line(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        path = write(tmp_path / "a.jsonl", {"question": "a", "answer": "b"}, {"question": "a"})
        with pytest.raises(DataError, match="a.jsonl:2: columns: expected the column 'answer' for 'completion', got a record"):
            load_dataset(path, tokenizer, columns=PAIR)

    def test_a_text_has_no_columns(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        (tmp_path / "a.txt").write_text("once upon")
        with pytest.raises(ConfigError, match="columns: expected data with columns, got text: .*a.txt; leave them out"):
            load_dataset(tmp_path / "a.txt", tokenizer, columns=PAIR)

    def test_what_is_left_aside_is_told_with_its_count(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        path = write(tmp_path / "a.jsonl", *[{"question": "a", "answer": " b", "context": "c"}] * 2)
        with pytest.warns(
            LoraCWarning, match="2 of 2 examples: only the columns that were named are used; left aside: 'context"
        ):
            assert len(load_dataset(path, tokenizer, columns=PAIR)) == 2


class TestTables:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    def test_tables_are_read_with_columns(self, tmp_path: Path, tokenizer: Tokenizer, encoding: str) -> None:
        expected = ids(load_dataset([{"prompt": 'a, "b"\nc', "completion": " ü"}], tokenizer))
        (tmp_path / "a.csv").write_text('question,answer\n"a, ""b""\nc", ü\n', encoding=encoding)
        (tmp_path / "a.tsv").write_text('question\tanswer\n"a, ""b""\nc"\t ü\n', encoding=encoding)
        (tmp_path / "b.csv").write_text('prompt , completion\n"a, ""b""\nc", ü\n', encoding=encoding)
        for name in ("a.csv", "a.tsv"):
            assert ids(load_dataset(tmp_path / name, tokenizer, columns=PAIR)) == expected
        assert ids(load_dataset(tmp_path / "b.csv", tokenizer)) == expected
        with pytest.raises(DataError, match="a.csv:2: .*give --columns prompt=question,completion=answer "):
            load_dataset(tmp_path / "a.csv", tokenizer)

    def test_a_wrong_number_of_columns_names_the_line_and_the_way_out(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        (tmp_path / "a.csv").write_text("prompt,completion\na,b\n\nc,d,e\nf, g\n")
        with pytest.raises(
            DataError, match=r"a.csv:4: expected 2 columns \(prompt, completion\), got 3; put a cell with commas"
        ):
            load_dataset(tmp_path / "a.csv", tokenizer)

    @pytest.mark.parametrize("sign", [";", "\t", "|"])
    def test_a_table_with_other_separators_is_refused_by_their_name(self, tmp_path: Path, tokenizer, sign: str) -> None:
        (tmp_path / "a.csv").write_text(f"question{sign}answer\na{sign}b\n")
        with pytest.raises(DataError) as error:
            load_dataset(tmp_path / "a.csv", tokenizer)
        assert f"its columns are separated by {sign!r}: write commas between them" in str(error.value)


class TestSkippedExamples:
    def test_bad_lines_are_left_out_up_to_a_number_and_listed(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        good = [{"prompt": "a", "completion": " b"}, {"text": "once"}]
        path = write(
            tmp_path / "a.jsonl", good[0], "{no json", [1], good[1], {"foo": 1}, '{"text": "\\ud800"}', {"messages": []}
        )
        with open(path, "ab") as file:
            file.write(b'{"text": "\xff"}\n')
        with pytest.warns(LoraCWarning, match="a.jsonl: 6 bad examples skipped, the first is .*a.jsonl:2: expected a JSON"):
            data = load_dataset(path, tokenizer, skip_bad=6)
        assert ids(data) == ids(load_dataset(good, tokenizer)) and data.n_examples == 2
        assert [line.split(": ")[0].rpartition(":")[2] for line in data.skipped] == ["2", "3", "5", "6", "7", "8"]
        assert all(line.startswith(f"{path}:") and "expected" in line for line in data.skipped)
        assert "6 skipped (bad)" in data.report() and "6 skipped" in repr(data)
        with pytest.raises(DataError, match=r"at most 5 bad examples \(skip_bad\), got one more; .*a.jsonl:8: expected UTF-8"):
            load_dataset(path, tokenizer, skip_bad=5)
        with pytest.raises(DataError, match="a.jsonl:2: expected a JSON object"):
            load_dataset(path, tokenizer)

    def test_rows_of_tables_and_items_of_arrays(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        (tmp_path / "a.csv").write_text("text\na\nb,c\nd\n")
        (tmp_path / "a.json").write_text('[{"text": "a"}, 3, {"text": "d"}]')
        for name, where in (("a.csv", "a.csv:3: expected 1 columns"), ("a.json", "a.json, item 2: expected a JSON object")):
            with pytest.warns(LoraCWarning, match=f"1 bad examples skipped, the first is .*{where}"):
                assert len(load_dataset(tmp_path / name, tokenizer, skip_bad=1)) == 2

    def test_what_breaks_the_rest_of_a_file_is_no_bad_example(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        (tmp_path / "a.json").write_text('[{"text": "a"}, {"text" "d"}]')
        with pytest.raises(DataError, match="a.json: expected a JSON object, got .*line 1, column 25"):
            load_dataset(tmp_path / "a.json", tokenizer, skip_bad=9)

    def test_a_limit_counts_good_examples(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        path = write(tmp_path / "a.jsonl", "{", {"text": "a"}, "{", {"text": "b"}, {"text": "c"}, "{")
        with pytest.warns(LoraCWarning, match="2 bad examples"):
            data = load_dataset(path, tokenizer, skip_bad=5, limit=2)
        assert [sample.where for sample in data] == [f"{path}:2", f"{path}:4"]

    def test_the_first_error_of_a_file_is_the_one_that_is_met(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        path = write(tmp_path / "a.jsonl", {"text": "a"}, {"foo": 1}, "{")
        with pytest.raises(DataError, match="a.jsonl:2: expected 'messages'"):
            load_dataset(path, tokenizer)
        (tmp_path / "a.json").write_text('[{"text": "a"}, {"foo": 1}, {')
        with pytest.raises(DataError, match="item 2: expected 'messages'"):
            load_dataset(tmp_path / "a.json", tokenizer)


class TestEmptyFiles:
    @pytest.mark.parametrize(
        ("name", "text", "form"),
        [
            ("a.jsonl", "", r'one JSON object per line, such as \{"prompt": "…", "completion": "…"\}'),
            ("a.jsonl", "\n  \n", "one JSON object per line"),
            ("a.json", "[]", r"an array of objects such as \[\{"),
            ("a.csv", "", r"a first line with the names of the columns \(prompt,completion\)"),
            ("a.csv", "prompt,completion\n", "a first line with the names of the columns"),
            ("a.tsv", "", r"a first line with the names of the columns \(prompt, tab, completion\)"),
            ("a.txt", "", "text, which is learned as it stands"),
        ],
    )
    def test_an_empty_file_is_told_how_it_should_look(
        self, tmp_path: Path, tokenizer, name: str, text: str, form: str
    ) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=f"{name}: expected at least one example, got none: it is empty; give {form}"):
            load_dataset(tmp_path / name, tokenizer)

    def test_what_has_no_loss_left_is_told_the_way_out(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        path = write(tmp_path / "a.jsonl", {"prompt": "once upon a time " * 10, "completion": "x"})
        with pytest.raises(DataError, match="1 left out .*; give a larger max_seq_length$"):
            load_dataset(path, tokenizer, max_seq_length=4)


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put


class TestStandardInput:
    def test_lines_of_objects_and_texts(self, tokenizer: Tokenizer, tmp_path: Path, feed) -> None:
        records = [{"prompt": "a", "completion": " b"}, {"text": "ünï"}] * 3
        path = write(tmp_path / "a.jsonl", *records)
        for begin in (b"", b"\xef\xbb\xbf", b"\n  \r\n"):
            feed(begin + path.read_bytes())
            data = load_dataset("-", tokenizer)
            assert ids(data) == ids(load_dataset(path, tokenizer)) and data.source == "standard input"
        text = "once upon a time. " * 500
        (tmp_path / "a.txt").write_text(text)
        feed(text.encode())
        assert ids(load_dataset(["-"], tokenizer)) == ids(load_dataset(tmp_path / "a.txt", tokenizer))
        assert not sys.stdin.closed

    def test_what_is_wrong_is_named_by_its_line(self, tokenizer: Tokenizer, feed) -> None:
        feed(b'{"text": "a"}\n{"foo": 1}\n')
        with pytest.raises(DataError, match="^standard input:2: expected 'messages'"):
            load_dataset("-", tokenizer)
        feed(b'{"text": "a"}\n{"te\n')
        with pytest.raises(DataError, match="^standard input:2: expected a JSON object"):
            load_dataset("-", tokenizer)
        feed(b"text \xff")
        with pytest.raises(DataError, match="^standard input: expected UTF-8 text, got byte 0xff"):
            load_dataset("-", tokenizer)
        feed(b"")
        with pytest.raises(DataError, match="^standard input: expected at least one example, got none: it is empty"):
            load_dataset("-", tokenizer)
        feed(b'[\n {"text": "a"}]')
        with pytest.raises(DataError, match="one JSON object per line or text, got a JSON array; write an object per line"):
            load_dataset("-", tokenizer)

    def test_it_is_read_once(self, tokenizer: Tokenizer, feed, monkeypatch) -> None:
        feed(b'{"text": "a"}\n')
        load_dataset("-", tokenizer)
        with pytest.raises(DataError, match=r"expected standard input \(-\) once, got it a second time"):
            load_dataset("-", tokenizer)
        with pytest.raises(DataError, match=r"expected standard input \(-\) once, got it twice"):
            find_files(["-", "-"])
        monkeypatch.setattr(sys, "stdin", None)
        with pytest.raises(DataError, match="expected data on standard input, got none that can be read"):
            load_dataset("-", tokenizer)

    def test_a_terminal_is_not_waited_for(self, tokenizer: Tokenizer, monkeypatch) -> None:
        class Terminal(io.TextIOWrapper):
            def isatty(self) -> bool:
                return True

        monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO(b"")))
        with pytest.raises(DataError, match="expected data on standard input, got a terminal; pipe a file into it"):
            load_dataset("-", tokenizer)

    def test_a_file_of_that_name_is_given_by_its_place(self, tokenizer: Tokenizer, tmp_path: Path, monkeypatch) -> None:
        (tmp_path / "-").write_text('{"text": "a"}\n')
        monkeypatch.chdir(tmp_path)
        assert ids(load_dataset("./-", tokenizer)) == ids(load_dataset([{"text": "a"}], tokenizer))


class TestPatterns:
    def test_a_pattern_means_the_files_that_match(self, tmp_path: Path, monkeypatch) -> None:
        for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "a.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            write(tmp_path / name, {"text": name})
        assert find_files(f"{tmp_path}/*.jsonl").taken == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
        assert [path.name for path in find_files(tmp_path / "**/*.jsonl").taken] == ["a.jsonl", "b.jsonl", "c.jsonl"]
        assert find_files([f"{tmp_path}/[b]*", tmp_path / "a.txt"]).taken == [tmp_path / "b.jsonl", tmp_path / "a.txt"]
        write(tmp_path / "[b].jsonl", {"text": "x"})
        assert find_files(tmp_path / "[b].jsonl").taken == [tmp_path / "[b].jsonl"]  # a name that is there is no pattern
        monkeypatch.setenv("HOME", str(tmp_path))
        assert find_files("~/a.t*").taken == find_files("~/a.txt").taken == [tmp_path / "a.txt"]

    def test_one_without_a_match_is_refused_with_what_the_folder_holds(self, tmp_path: Path) -> None:
        write(tmp_path / "a.jsonl", {"text": "a"})
        (tmp_path / "sub").mkdir()
        message = rf"expected files that match '{tmp_path}/\*.jsn', got none; the folder '{tmp_path}' holds a.jsonl, sub/"
        with pytest.raises(DataError, match=message):
            find_files(tmp_path / "*.jsn")
        with pytest.raises(DataError, match=rf"got none; there is no folder '{tmp_path}/none'"):
            find_files(tmp_path / "none" / "*.jsonl")
        with pytest.raises(DataError, match=rf"the folder '{tmp_path}/sub' holds nothing"):
            find_files(tmp_path / "sub" / "*")


def test_readers_name_the_first_bad_line_to_those_who_read_all_of_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "a"}, "{")
    with pytest.raises(DataError, match="a.jsonl:2"):
        list(read_records(path))
