"""Data that is in memory: iterables, tables of pandas, polars and Arrow, sets of the package datasets."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lora_c as lc
from lora_c.demo.run import BASE_MODEL
from lora_c.errors import ConfigError, DataError
from lora_c.notices import LoraCWarning
from lora_c.text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*the tokenizer has no token for:lora_c.notices.LoraCWarning")  # of the demo

PAIRS = [{"prompt": f"Once {i}", "completion": f" upon {i}"} for i in range(3)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(BASE_MODEL)


def ids(data: lc.Dataset) -> list[list[int]]:
    return [sample.input_ids.tolist() for sample in data]


def same_as_a_file(records: Any, data: lc.Dataset, tokenizer: Tokenizer, tmp_path: Path) -> bool:
    import json

    path = tmp_path / "same.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    file = lc.load_dataset(path, tokenizer)
    masks = all((a.loss_mask == b.loss_mask).all() for a, b in zip(data, file, strict=True))
    return ids(data) == ids(file) and masks


class TestIterables:
    def test_records_give_what_a_file_of_them_gives(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        forms = [*PAIRS, {"text": "once"}, {"instruction": "a", "input": "b", "output": "c"}]
        kinds: list[Any] = [list, tuple, iter, lambda r: map(UserDict, r), lambda r: dict(enumerate(r)).values()]
        for kind in kinds:
            for read in (lc.load_dataset, lc.Dataset.from_records):
                assert same_as_a_file(forms, read(kind(forms), tokenizer), tokenizer, tmp_path)

    def test_texts_are_learned_as_they_are(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        texts = ["once upon a time", "the end"]
        expected = lc.Dataset.from_records([{"text": text} for text in texts], tokenizer)
        for data in (texts, tuple(texts), iter(texts), np.array(texts)):
            assert ids(lc.Dataset.from_records(data, tokenizer)) == ids(expected)
        assert ids(lc.load_dataset(texts, tokenizer)) == ids(expected)
        assert ids(lc.load_dataset((text for text in texts), tokenizer)) == ids(expected)

    def test_a_list_of_texts_that_may_be_paths_is_one_of_paths(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        (tmp_path / "a b").write_text('{"text": "once"}\n')
        for names in (["trian.jsonl"], ["trian"], ["see train.jsonl", "two words"], [tmp_path / "none"], ["nothing/*.jsonl"]):
            with pytest.raises(DataError, match="does not exist|there is no folder"):
                lc.load_dataset(names, tokenizer)
        assert ids(lc.load_dataset([str(tmp_path / "a b")], tokenizer)) == ids(lc.load_dataset([{"text": "once"}], tokenizer))

    def test_a_generator_is_read_once_and_no_further_than_the_limit(self, tokenizer: Tokenizer) -> None:
        read = []

        def records() -> Iterator[dict[str, str]]:
            for record in PAIRS * 1000:
                read.append(record)
                yield record

        assert len(lc.load_dataset(records(), tokenizer, limit=5)) == len(read) == 5
        read.clear()
        assert len(lc.load_dataset(records(), tokenizer)) == len(read) == 3000

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ({"prompt": "x"}, "^record 2: expected 'completion' to be a string, got a record without it"),
            ({"prompt": "x", "completion": 3}, "^record 2: expected 'completion' to be a string, got int"),
            ({"foo": 1}, "^record 2: expected 'messages', 'prompt'/'completion'"),
            ({"messages": []}, "^record 2: expected 'messages' to be a list that is not empty"),
            (3, "^record 2: expected a mapping or a text, got a int$"),
            (b"text", "^record 2: expected a mapping or a text, got a bytes$"),
            ([{"role": "user", "content": "x"}], r"got a list; a conversation is \{\"messages\": \[...\]\}"),
            (Path("a.jsonl"), "got a PosixPath; give paths as a list"),
            ({"text": "half \ud800"}, "^record 2: .*surrogate"),
            ({"question": "a", "answer": "b"}, "^record 2: .*columns={'prompt': 'question', 'completion': 'answer'}"),
        ],
    )
    def test_what_is_wrong_is_named_by_its_number(self, tokenizer: Tokenizer, record: Any, message: str) -> None:
        for data in ([PAIRS[0], record, PAIRS[1]], iter([PAIRS[0], record])):
            with pytest.raises(DataError, match=message) as error:
                lc.load_dataset(data, tokenizer)
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (3, "expected a path, or an iterable of mappings or texts, got a int"),
            (None, "expected a path, or an iterable of mappings or texts, got a NoneType"),
            (b"text", "got a bytes"),
            (PAIRS[0], "expected records, got one mapping with the keys prompt, completion; give a list of mappings"),
            (iter([]), "expected at least one example, got none: it is empty; give an iterable of mappings such as"),
        ],
    )
    def test_what_is_no_data_is_refused(self, tokenizer: Tokenizer, data: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            lc.load_dataset(data, tokenizer)

    def test_one_text_is_no_list_of_texts(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(DataError, match=r"got a str; \[data\] is a list of one example"):
            lc.Dataset.from_records("once", tokenizer)
        with pytest.raises(DataError, match="tokenizer: expected a Tokenizer, got a str"):
            lc.Dataset.from_records(PAIRS, "model")  # type: ignore[arg-type]

    def test_what_the_iterable_throws_is_its_own(self, tokenizer: Tokenizer) -> None:
        def records() -> Iterator[Any]:
            yield PAIRS[0]
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            lc.load_dataset(records(), tokenizer)

    def test_columns_and_bad_records(self, tokenizer: Tokenizer) -> None:
        columns = {"prompt": "question", "completion": "answer"}
        records = [{"question": "a b", "answer": "c"}, {"question": "a b"}]
        with pytest.warns(LoraCWarning, match="1 bad examples skipped, the first is record 2: columns: expected the column"):
            data = lc.Dataset.from_records(records, tokenizer, columns=columns, skip_bad=1)
        assert ids(data) == ids(lc.Dataset.from_records([{"prompt": "a b", "completion": "c"}], tokenizer))
        assert [line[:9] for line in data.skipped] == ["record 2:"]
        for wrong in (-1, True, 1.5, "3"):
            with pytest.raises(ConfigError, match="skip_bad: expected a number of examples"):
                lc.Dataset.from_records(PAIRS, tokenizer, skip_bad=wrong)  # type: ignore[arg-type]


class TestTables:
    def test_a_frame_of_pandas(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        pandas = pytest.importorskip("pandas", reason="needs pandas (the test extra)")
        frame = pandas.DataFrame(PAIRS, index=[7, 7, 7])
        assert same_as_a_file(PAIRS, lc.load_dataset(frame, tokenizer), tokenizer, tmp_path)
        big = pandas.concat([frame] * 700)
        assert ids(lc.load_dataset(big, tokenizer)) == ids(lc.load_dataset(PAIRS * 700, tokenizer))
        assert len(lc.load_dataset(frame["prompt"], tokenizer)) == 3  # a column is a list of texts

    def test_empty_cells_of_a_frame_are_absent(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        pandas = pytest.importorskip("pandas", reason="needs pandas (the test extra)")
        rows = [
            {"instruction": "a", "input": float("nan"), "output": "x", "system": None, "score": 1.5},
            {"instruction": "b", "input": "more", "output": "y", "system": "be kind", "score": float("nan")},
        ]
        kept = [{"instruction": "a", "output": "x"}, {"instruction": "b", "input": "more", "output": "y", "system": "be kind"}]
        for frame in (pandas.DataFrame(rows), pandas.DataFrame(rows).convert_dtypes(), pandas.DataFrame(rows, dtype=object)):
            assert same_as_a_file(kept, lc.load_dataset(frame, tokenizer), tokenizer, tmp_path)
        frame = pandas.DataFrame({"prompt": ["a", None], "completion": ["b", "c"]})
        with pytest.raises(DataError, match="record 2: expected 'messages'.*got the keys|record 2: expected 'prompt'"):
            lc.load_dataset(frame, tokenizer)

    def test_messages_in_a_frame(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        pandas = pytest.importorskip("pandas", reason="needs pandas (the test extra)")
        arrow = pytest.importorskip("pyarrow", reason="needs pyarrow (the data extra)")
        template = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
        talk = Tokenizer(tokenizer.backend, tokenizer.special_tokens, template)
        turns = [[{"role": "user", "content": f"a{i}"}, {"role": "assistant", "content": "b"}] for i in range(2)]
        records = [{"messages": messages} for messages in turns]
        table = arrow.Table.from_pylist([{**record, "text": None} for record in records] + [{"text": "x"}])
        expected = [*records, {"text": "x"}]
        frame = table.to_pandas()  # the messages are NumPy arrays of dictionaries
        assert isinstance(frame["messages"][0], np.ndarray)
        for data in (pandas.DataFrame(records), frame[:2], frame, table):
            want = records if len(data) == 2 else expected
            assert same_as_a_file(want, lc.load_dataset(data, talk), talk, tmp_path)

    def test_two_columns_of_one_name_are_refused(self, tokenizer: Tokenizer) -> None:
        pandas = pytest.importorskip("pandas", reason="needs pandas (the test extra)")
        frame = pandas.DataFrame([["a", "b"]], columns=["text", "text"])
        with pytest.raises(DataError, match="data: expected a name of its own for every column, got text twice"):
            lc.load_dataset(frame, tokenizer)

    def test_numbers_in_a_frame_are_no_texts(self, tokenizer: Tokenizer) -> None:
        pandas = pytest.importorskip("pandas", reason="needs pandas (the test extra)")
        frame = pandas.DataFrame({"prompt": ["2+2="], "completion": [4]})
        with pytest.raises(DataError, match="record 1: expected 'completion' to be a string, got int"):
            lc.load_dataset(frame, tokenizer)

    def test_none_of_the_packages_is_imported_for_a_list(self, alone) -> None:
        code = f"""
import sys
import lora_c as lc
from lora_c.text.tokenizer import Tokenizer
data = lc.load_dataset([{{"text": "once"}}], Tokenizer.from_folder({str(BASE_MODEL)!r}))
repr(data), data.show(1)
print(sorted({{"pandas", "datasets", "pyarrow", "polars", "IPython"}} & set(sys.modules)))
"""
        assert alone(code).splitlines()[-1] == "[]"


class HubSet:
    """What `datasets.Dataset` shows to the outside: rows are dictionaries with every column, unless a format is set."""

    def __init__(self, rows: list[dict[str, Any]], format: str | None = "numpy") -> None:
        self.rows, self.format = rows, format
        self.column_names = list(dict.fromkeys(key for row in rows for key in row))

    def __len__(self) -> int:
        return len(self.rows)

    def with_format(self, type: str | None = None, columns: Any = None, **_: Any) -> HubSet:
        return HubSet(self.rows, type)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            whole = {name: row.get(name) for name in self.column_names}
            yield whole if self.format is None else {key: np.asarray(value) for key, value in whole.items()}


class HubStream(HubSet):
    """`datasets.IterableDataset` has no length."""

    __len__ = None  # type: ignore[assignment]


class TestDatasetsOfTheHub:
    rows = [{"prompt": "a", "completion": " b"}, {"text": "once"}]

    @pytest.mark.parametrize("kind", [HubSet, HubStream])
    def test_rows_lose_what_is_null_and_formats_do_not_count(self, tokenizer, tmp_path, kind) -> None:
        data = lc.load_dataset(kind(self.rows), tokenizer)
        assert same_as_a_file(self.rows, data, tokenizer, tmp_path)
        assert kind.__name__ in data.source

    def test_of_several_splits_one_is_taken(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        splits = {"train": HubSet(self.rows), "test": HubSet(self.rows[1:])}
        assert same_as_a_file(self.rows, lc.load_dataset(splits, tokenizer), tokenizer, tmp_path)
        assert same_as_a_file(self.rows[1:], lc.load_dataset(splits, tokenizer, split="test"), tokenizer, tmp_path)
        with pytest.raises(DataError, match="expected the split validation, got only train, test"):
            lc.load_dataset(splits, tokenizer, split="validation")

    def test_a_frame_of_polars(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        frame = SimpleNamespace(iter_rows=lambda named: iter([row | {"extra": None} for row in self.rows] if named else []))
        assert same_as_a_file(self.rows, lc.load_dataset(frame, tokenizer), tokenizer, tmp_path)


class TestWhatADatasetSays:
    def test_its_repr_has_three_short_lines(self, tokenizer: Tokenizer) -> None:
        data = lc.Dataset.from_records(PAIRS * 5000, tokenizer)
        lines = repr(data).splitlines()
        assert len(lines) == 3 and max(map(len, lines)) < 120
        assert lines[0] == "Dataset: 15,000 sequences from list of 15,000 records"
        assert f"{data.n_tokens:,}, {data.n_predicted:,} with loss" in lines[1]
        assert lines[2].split(maxsplit=1) == ["examples", "15,000 read, none cut or left out"]
        assert repr(data[0]).startswith("Sample(") and len(repr(data[0])) < 60
        assert len(repr(lc.Dataset([])).splitlines()) == 3

    def test_its_repr_says_what_was_cut(self, tokenizer: Tokenizer) -> None:
        records = [{"prompt": "once", "completion": "a " * 50}, {"prompt": "a " * 50, "completion": "x"}, *PAIRS]
        data = lc.Dataset.from_records(records, tokenizer, max_seq_length=30)
        assert repr(data).endswith("5 read, 2 cut, 1 left out")

    def test_it_is_public(self) -> None:
        assert "Dataset" in lc.__all__ and "Dataset" in dir(lc)
        for text in (lc.Dataset.__doc__, lc.Dataset.from_records.__doc__, lc.load_dataset.__doc__, lc.Dataset.show.__doc__):
            assert text and "Parameters\n" in text and "----------" in text

    def test_limit_counts_pieces_of_text_files(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("once upon a time there was a fox. " * 100)
        (tmp_path / "b.txt").write_text("the end. " * 100)
        whole = lc.load_dataset([tmp_path / "a.txt", tmp_path / "b.txt"], tokenizer, max_seq_length=16)
        for limit in (1, 3, 60):
            part = lc.load_dataset([tmp_path / "a.txt", tmp_path / "b.txt"], tokenizer, max_seq_length=16, limit=limit)
            assert ids(part) == ids(whole)[:limit] and len(part) == part.n_examples == limit

    def test_a_trainer_takes_it(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        model = lc.load_model(BASE_MODEL, progress=False)
        model.add_adapter(r=2)
        data = lc.Dataset.from_records([{"prompt": "once", "completion": " upon a time"}], model.tokenizer)
        config = lc.TrainConfig(output_dir=str(tmp_path / "out"), method="lora", max_steps=1)
        assert lc.Trainer(model, data, config).train().steps == 1


def test_texts_encoded_together_have_the_ids_that_each_has_alone(tokenizer: Tokenizer, monkeypatch) -> None:
    from lora_c.text import encoded_ahead

    records = [{"prompt": f"Ünïcode 日本 {i}\t", "completion": f"{'x' * (i % 7)} {i}"} for i in range(1200)]
    records += [{"text": "a  b\n\n" * (i % 40)} for i in range(100)] + [{"prompt": "", "completion": "x"}]
    together = lc.load_dataset(records, tokenizer)
    assert tokenizer.ready == {}
    monkeypatch.setattr(encoded_ahead, "_FEWEST", 10**9)
    alone = lc.load_dataset(records, tokenizer)
    assert ids(together) == ids(alone)
    assert all((a.loss_mask == b.loss_mask).all() for a, b in zip(together, alone, strict=True))


def test_a_text_that_cannot_be_encoded_together_with_others_is_named_itself(tokenizer: Tokenizer) -> None:
    records = [*PAIRS * 30, {"prompt": "half \ud83d", "completion": "x"}]
    with pytest.raises(DataError, match="^record 91: text: expected valid Unicode, got a lone surrogate at character 5"):
        lc.load_dataset(records, tokenizer)
    assert tokenizer.ready == {}
