"""Data against a model: long samples are cut and told, ids beyond the embedding refused before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from click.testing import CliRunner

from lora_c import TrainConfig, Trainer, load_dataset, load_model
from lora_c.cli import cli
from lora_c.data import Dataset, Sample
from lora_c.errors import DataError
from lora_c.model.model import Model
from lora_c.notices import LoraCWarning
from lora_c.training.evaluation import evaluate_loss


@pytest.fixture
def model(tiny_model_dir: Path) -> Model:
    model = load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2)
    return model


def sample(n: int, first: int = 3, where: str = "", masked: int = 0) -> Sample:
    mask = np.ones(n, np.float32)
    mask[:masked] = 0
    return Sample(np.arange(first, first + n, dtype=np.int32) % 64, mask, where)


def config(tmp_path: Path, **options: object) -> TrainConfig:
    return TrainConfig(output_dir=str(tmp_path / "out"), max_steps=3, per_device_train_batch_size=1, **options)


def test_samples_longer_than_the_context_are_cut_and_told(model: Model, tmp_path: Path) -> None:
    long = [sample(5), sample(70, where="a.jsonl:2"), sample(80), sample(90, masked=64)]
    with pytest.warns(LoraCWarning) as told:
        trainer = Trainer(model, Dataset(long), config(tmp_path))
    assert [str(w.message) for w in told] == [
        "train_data: 3 of 4 samples cut to the first 64 tokens, 1 left out (no token with loss); the first is a.jsonl:2"
    ]
    assert [len(s) for s in trainer.train_data.samples] == [5, 64, 64]
    assert (trainer.train_data.n_truncated, trainer.train_data.n_without_loss) == (3, 1)
    assert trainer.train().steps == 3
    with pytest.warns(LoraCWarning, match="dataset: 2 of 3 samples cut to the first 64"):
        cut = evaluate_loss(model, Dataset(long[:3]))
    assert cut == evaluate_loss(model, Dataset(trainer.train_data.samples))


def test_a_shorter_length_that_is_asked_for_counts(model: Model, tmp_path: Path) -> None:
    with pytest.warns(LoraCWarning, match="train_data: 1 of 2 samples cut to the first 8 tokens; the first is sample 1"):
        trainer = Trainer(model, Dataset([sample(8), sample(9)]), config(tmp_path, max_seq_length=8))
    assert [len(s) for s in trainer.train_data.samples] == [8, 8]


def test_data_that_fits_stays_the_same_object(model: Model, tmp_path: Path) -> None:
    train, held_out = Dataset([sample(64)]), Dataset([sample(4)])
    trainer = Trainer(model, train, config(tmp_path), held_out)
    assert trainer.train_data is train and trainer.eval_data is held_out


@pytest.mark.parametrize("bad", [64, 70_000, -1])
def test_ids_beyond_the_embedding_are_refused_before_the_first_step(model: Model, tmp_path: Path, bad: int) -> None:
    wrong = Sample(np.array([3, bad, 4], np.int32), np.ones(3, np.float32), "a.jsonl:7")
    data = Dataset([sample(4), wrong, wrong])
    message = rf"a.jsonl:7: expected token ids below 64 .*, got {bad:,} and 1 more samples like it; .*--resize-embedding"
    with pytest.raises(DataError, match="train_data: " + message):
        Trainer(model, data, config(tmp_path))
    with pytest.raises(DataError, match="eval_data: " + message):
        Trainer(model, Dataset([sample(4)]), config(tmp_path), data)
    with pytest.raises(DataError, match="dataset: " + message):
        evaluate_loss(model, data)


def test_samples_that_cannot_be_trained_are_refused(model: Model, tmp_path: Path) -> None:
    ids, ones = np.arange(3, 7, dtype=np.int32), np.ones(4, np.float32)
    for wrong, message in (
        (Sample(ids, ones[:3]), r"sample 0: expected input_ids and loss_mask of one shape \(n,\), got \(4,\) and \(3,\)"),
        (Sample(ids.astype(np.float32), ones), "sample 0: expected integers as input_ids, got float32"),  # type: ignore[arg-type]
        (Sample(ids, 0 * ones), "expected at least one sample with a token that carries loss, got 1 without"),
    ):
        with pytest.raises(DataError, match=message):
            Trainer(model, Dataset([wrong]), config(tmp_path))
    with pytest.raises(DataError, match="expected at least one sample"):
        Trainer(model, Dataset([]), config(tmp_path))
    with pytest.raises(DataError, match="dataset: expected at least one sample"):
        evaluate_loss(model, Dataset([]))


class TestReading:
    @pytest.fixture
    def folder(self, tiny_model_dir: Path) -> Path:
        """A model whose tokenizer has one token more than the embedding has rows."""
        backend = tokenizers.Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))
        backend.add_special_tokens(["<|extra|>"])
        backend.save(str(tiny_model_dir / "tokenizer.json"))
        return tiny_model_dir

    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
    def test_ids_beyond_the_embedding_are_refused_with_their_place(self, folder: Path, tmp_path: Path, name: str) -> None:
        texts = ["w3 w4"] * 5 + ["w3 <|extra|>"]
        contents = {
            "a.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts),
            "a.json": json.dumps([{"text": text} for text in texts]),
            "a.csv": "text\n" + "\n".join(texts),
            "a.txt": "\n".join(texts),
        }
        (tmp_path / name).write_text(contents[name])
        where = {"a.jsonl": "a.jsonl:6", "a.json": "a.json, item 6", "a.csv": "a.csv:7", "a.txt": "a.txt, piece 3"}
        with pytest.raises(DataError, match=f"{where[name]}: expected token ids below 64 .*, got 64; .*resize_embedding=True"):
            load_dataset(tmp_path / name, load_model(folder, progress=False).tokenizer, max_seq_length=5)
        (tmp_path / name).write_text(contents[name].replace("<|extra|>", "w5"))
        load_dataset(tmp_path / name, load_model(folder, progress=False).tokenizer)

    def test_sequences_are_cut_to_the_context_of_the_model(self, folder: Path, tmp_path: Path) -> None:
        tokenizer = load_model(folder, progress=False).tokenizer
        (tmp_path / "a.jsonl").write_text(json.dumps({"text": "w3 " * 100}) + "\n")
        (tmp_path / "a.txt").write_text("w3 " * 100)
        data = load_dataset(tmp_path / "a.jsonl", tokenizer)
        assert ([len(s) for s in data.samples], data.n_truncated) == ([64], 1)
        assert [len(s) for s in load_dataset(tmp_path / "a.txt", tokenizer).samples] == [64, 36]


class TestHeldOutData:
    def run(self, *args: object) -> str:
        done = CliRunner().invoke(cli, [str(arg) for arg in args], standalone_mode=False)
        assert done.exception is None, done.output
        return done.output

    @pytest.fixture
    def splits(self, tmp_path: Path) -> Path:
        folder = tmp_path / "data"
        folder.mkdir()
        for name, n in (("train", 6), ("valid", 3), ("test", 2)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"w{i} w4"}) + "\n" for i in range(3, 3 + n)))
        (folder / "README.md").write_text("words")
        return folder

    def test_the_validation_split_is_held_out(self, tiny_model_dir: Path, splits: Path, tmp_path: Path) -> None:
        said = self.run("train", "--model", tiny_model_dir, "--data", splits, "--output-dir", tmp_path / "out",
                        "--method", "lora", "--max-steps", 2, "--eval-steps", 1)  # fmt: skip
        assert f"data      {splits / 'train.jsonl'} (train): 6 sequences" in said
        assert f"held out  {splits / 'valid.jsonl'} (validation): 3 sequences" in said
        assert "left out  test.jsonl (test), README.md (in no split)" in said
        rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "eval_loss" in row] == [0, 1, 2]

    def test_a_share_that_is_asked_for_wins(self, tiny_model_dir: Path, splits: Path, tmp_path: Path) -> None:
        said = self.run("train", "--model", tiny_model_dir, "--data", splits, "--output-dir", tmp_path / "out",
                        "--method", "lora", "--max-steps", 2, "--val-fraction", 0.5)  # fmt: skip
        assert "held out  " not in said and "valid.jsonl (validation)" in said
        assert "split     3 of 6 sequences held out (val_fraction 0.5)" in said

    def test_held_out_data_that_is_trained_on_is_said(self, tiny_model_dir: Path, splits: Path, tmp_path: Path) -> None:
        with pytest.warns(LoraCWarning, match="eval_data: train.jsonl is trained on too"):
            self.run("train", "--model", tiny_model_dir, "--data", splits, "--output-dir", tmp_path / "out",
                     "--method", "lora", "--max-steps", 2, "--eval-data", splits / "train.jsonl")  # fmt: skip

    def test_evaluation_takes_the_test_split(self, tiny_model_dir: Path, splits: Path) -> None:
        assert "(test): 2 sequences" in self.run("eval", "--model", tiny_model_dir, "--data", splits)
        assert "(train): 6 sequences" in self.run("eval", "--model", tiny_model_dir, "--data", splits, "--split", "train")
        assert "11 sequences" in self.run("eval", "--model", tiny_model_dir, "--data", splits, "--split", "all")


@pytest.mark.parametrize("given", [[], "d.jsonl", [{"input_ids": [1, 2], "labels": [1, 2]}]])
def test_what_is_no_data_set_is_refused_by_its_type(make_model, tmp_path, given: object) -> None:
    model = load_model(make_model())
    model.add_adapter(r=2)
    config = TrainConfig(output_dir=str(tmp_path / "out"), max_steps=1)
    with pytest.raises(DataError, match=f"train_data: expected a Dataset, got a {type(given).__name__}; load_dataset"):
        Trainer(model, given, config)
    with pytest.raises(DataError, match="tokenizer: expected a Tokenizer, got a Model; a model's is model.tokenizer"):
        load_dataset("d.jsonl", model)
