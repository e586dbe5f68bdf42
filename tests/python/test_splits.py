"""Which files of a folder are read: those of a split, found by name, and what is said of the others."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from lora_c import load_dataset
from lora_c.data import find_files
from lora_c.errors import DataError
from lora_c.notices import LoraCWarning


class ByteTokenizer:
    """One token per character, and no special ones."""

    bos_token_id = eos_token_id = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) for c in text]

    def encode_with_offsets(self, text: str, add_special_tokens: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        return self.encode(text), [(i, i + 1) for i in range(len(text))]


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"text": name}) + "\n", encoding="utf-8")
    return folder


def names(paths: list[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


# Layouts as the package datasets and mlx-lm know them: (files, those of train, of validation, of test).
LAYOUTS = [
    (["train.jsonl", "valid.jsonl", "test.jsonl"], ["train.jsonl"], ["valid.jsonl"], ["test.jsonl"]),
    (["training.json", "val.json", "testing.json"], ["training.json"], ["val.json"], ["testing.json"]),
    (["x_train.csv", "x-dev.csv", "x.eval.csv"], ["x_train.csv"], ["x-dev.csv"], ["x.eval.csv"]),
    (["TRAIN.jsonl.gz", "Validation.jsonl.gz"], ["TRAIN.jsonl.gz"], ["Validation.jsonl.gz"], []),
    (
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        [],
        ["data/test-00000-of-00001.parquet"],
    ),
    (["train/a.jsonl", "train/b.txt", "valid/a.jsonl"], ["train/a.jsonl", "train/b.txt"], ["valid/a.jsonl"], []),
    (["train/not_a_test.jsonl", "test/train.jsonl"], ["train/not_a_test.jsonl"], [], ["test/train.jsonl"]),
    (["train1.jsonl", "train2.jsonl", "constrained.jsonl"], ["train1.jsonl", "train2.jsonl"], [], []),
    (["a.jsonl", "b.parquet", "contest.jsonl"], ["a.jsonl", "b.parquet", "contest.jsonl"], [], []),
    (["a.jsonl", "dev.jsonl"], ["a.jsonl"], ["dev.jsonl"], []),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_splits(tmp_path: Path, layout: tuple[list[str], ...]) -> None:
    make(tmp_path, *layout[0])
    for split, expected in zip(("train", "validation", "test"), layout[1:], strict=True):
        if expected:
            found = find_files(tmp_path, split)
            assert names(found.taken, tmp_path) == expected and found.split == split
            others = {other: list(files) for other, files in zip(("train", "validation", "test"), layout[1:], strict=True)}
            assert {k: names(v, tmp_path) for k, v in found.others.items()} == {
                k: v for k, v in others.items() if v and k != split
            }
        else:
            with pytest.raises(DataError, match=f"expected files of the split {split} in .* got only .*; give the files"):
                find_files(tmp_path, split)
    assert sorted(names(find_files(tmp_path, "all").taken, tmp_path)) == sorted(layout[0])


def test_texts_about_data_and_other_kinds_are_left_out_and_named(tmp_path: Path) -> None:
    about = ["LICENSE.txt", "README.md", "readme.txt", "NOTICE.txt", "CITATION.txt", "LICENSE-MIT.txt", "requirements.txt"]
    other = ["dataset_info.json", "metrics.jsonl", "notes.docx", "old/a.jsonl", "more.jsonl"]
    make(tmp_path, "train.txt", ".hidden.jsonl", *about, *other)
    found = find_files(tmp_path)
    assert names(found.taken, tmp_path) == ["train.txt"]
    assert sorted(names(found.left_out, tmp_path)) == sorted([*about, *other[:3], "old", "more.jsonl"])
    told = r"data: read train.txt \(train\), left out: more.jsonl, .*LICENSE.txt.* \(in no split\)"
    with pytest.warns(LoraCWarning, match=told):
        load_dataset(tmp_path, ByteTokenizer())
    assert names(find_files(tmp_path / "LICENSE.txt").taken, tmp_path) == ["LICENSE.txt"]  # named, it is meant


def test_texts_about_data_alone_are_no_reason_for_a_warning(tmp_path: Path) -> None:
    make(tmp_path, "train.jsonl", "README.md", "LICENSE", "dataset_info.json", ".gitattributes")
    data = load_dataset(tmp_path, ByteTokenizer())  # a warning would be an error here
    assert sorted(names(data.files.left_out, tmp_path)) == ["LICENSE", "README.md", "dataset_info.json"]


def test_the_training_split_is_read_and_the_others_on_request(tmp_path: Path) -> None:
    make(tmp_path, "train.jsonl", "valid.jsonl", "test.jsonl")
    for split, expected in (
        ("train", "train.jsonl"),
        ("val", "valid.jsonl"),
        ("test", "test.jsonl"),
        (("test", "train"), "test.jsonl"),
    ):
        with pytest.warns(LoraCWarning, match="left out: "):
            data = load_dataset(tmp_path, ByteTokenizer(), split=split)
        assert [names(data.files.taken, tmp_path), len(data)] == [[expected], 1]
    assert len(load_dataset(tmp_path, ByteTokenizer(), split="all")) == 3
    assert len(load_dataset([tmp_path / "train.jsonl", str(tmp_path / "test.jsonl")], ByteTokenizer())) == 2
    with pytest.raises(DataError, match="split: expected train, validation, test or all, got 'tain', did you mean 'train'"):
        load_dataset(tmp_path, ByteTokenizer(), split="tain")


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make(tmp_path / "configs", "main/train.jsonl", "README.md")
    for wrong, message in (
        (tmp_path / "empty", "expected files ending in .*got nothing"),
        (tmp_path / "configs", "expected files ending in .*got README.md, main"),
        (tmp_path / "none", "does not exist"),
        ([], "at least one file"),
    ):
        with pytest.raises(DataError, match=message):
            find_files(wrong)  # type: ignore[arg-type]
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "itself").symlink_to("itself")
    make(tmp_path / "folder", "a.jsonl")
    os.mkfifo(tmp_path / "folder/b.jsonl")
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling/a.jsonl").symlink_to("nowhere")
    for wrong, message in (
        (tmp_path / "pipe.jsonl", "got a named pipe"),
        (tmp_path / "itself", "symbolic links"),
        (tmp_path / "folder", "b.jsonl: expected a regular file, got a named pipe"),
        (tmp_path / "dangling", "a.jsonl: expected a file, got nothing there"),
    ):
        with pytest.raises(DataError, match=message):
            find_files(wrong)


def test_a_folder_that_links_to_itself_is_read_once(tmp_path: Path) -> None:
    make(tmp_path, "train/a.jsonl")
    (tmp_path / "train/data").symlink_to("..")
    (tmp_path / "data").symlink_to(".")
    assert names(find_files(tmp_path).taken, tmp_path) == ["train/a.jsonl"]


def test_files_that_are_read_twice_are_told(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}", encoding="utf-8")
    (tmp_path / "link.jsonl").symlink_to("train.jsonl")
    with pytest.warns(LoraCWarning, match="link.jsonl, train.jsonl is given more than once: its examples are read as often"):
        find_files([tmp_path / "train.jsonl", tmp_path / "link.jsonl"])
    (tmp_path / "link.jsonl").unlink()
    with gzip.open(tmp_path / "train.jsonl.gz", "wb") as file:
        file.write(b"{}")
    with pytest.warns(LoraCWarning, match="train.jsonl.gz is read beside the file of the same name without .gz"):
        find_files(tmp_path)


def test_files_in_folders_of_splits_are_named_with_them(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.jsonl").write_text("{}", encoding="utf-8")
    assert find_files(tmp_path).describe_rest() == "test/a.jsonl (test)"
