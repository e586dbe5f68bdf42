"""lora-c data, and the options that say what is read as data in every command that reads some."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

import lora_c as lc
from lora_c.cli import cli
from lora_c.cli.data_options import describe_data
from lora_c.data import Dataset
from lora_c.demo.run import BASE_MODEL
from lora_c.errors import ConfigError, LoraCError
from lora_c.model.tokenizer_of_model import load_tokenizer
from lora_c.notices import LoraCWarning

pytestmark = pytest.mark.filterwarnings("ignore:data. .*trained as they stand:lora_c.notices.LoraCWarning")

QUESTIONS = [{"question": f"Once {i}", "answer": " upon a time"} for i in range(10)]
COLUMNS = ("--columns", "prompt=question,completion=answer")


def run(*args: object, **options: Any) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=True, **options)


def fine(*args: object, **options: Any) -> str:
    done = run(*args, **options)
    assert done.exit_code == 0, (done.exception, done.output)
    return done.stdout


def refused(*args: object, **options: Any) -> str:
    done = run(*args, **options)
    assert isinstance(done.exception, LoraCError), (done.exception, done.output)
    return str(done.exception)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "qa.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in QUESTIONS), encoding="utf-8")
    return path


def data_of(*args: object) -> dict[str, Any]:
    return dict(json.loads(fine("data", "--model", BASE_MODEL, "--json", *args)))


class TestData:
    def test_it_says_what_the_model_will_see(self, questions: Path) -> None:
        steps = ("--per-device-train-batch-size", 2, "--gradient-accumulation-steps", 2, "--num-train-epochs", 3)
        flags = ("--data", questions, *COLUMNS, "--val-fraction", 0.2, "--show", 2, *steps)
        out = fine("data", "--model", BASE_MODEL, *flags)
        data = lc.load_dataset(questions, load_tokenizer(BASE_MODEL), columns="prompt=question,completion=answer")
        train, held_out = data.split(0.2, 0)
        assert f"model     {BASE_MODEL}: " in out and "with a chat template" in out
        assert f"data      {questions}: 10 sequences, {data.n_tokens} tokens, {data.n_predicted} with loss" in out
        assert "split     2 of 10 sequences held out" in out
        assert "twice     0 of 8 sequences have the tokens of an earlier one" in out
        assert "steps     2 of 4 sequences in an epoch, 6 in the run" in out
        assert "nine of ten up to" in out and "#####" in out
        shown = [line for line in out.splitlines() if "⟦ upon a time" in line]
        assert len(shown) == 2 and "what carries loss is between ⟦ and ⟧" in out and "\x1b" not in out
        assert len(held_out) == 2 and shown[0].startswith(load_tokenizer(BASE_MODEL).decode(train[0].input_ids[:2]))

    def test_json_says_the_same_in_numbers(self, questions: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.jsonl"
        changed = [QUESTIONS[3], {"question": "Once 4", "answer": " more"}, {"question": "new", "answer": " one"}, {"foo": 1}]
        other.write_text("".join(json.dumps(record) + "\n" for record in changed), encoding="utf-8")
        found = data_of("--data", questions, "--eval-data", other, *COLUMNS, "--skip-bad", 1, "--show", 1)
        train, held_out = found["train"], found["held_out"]
        assert (train["examples"], train["sequences"], train["cut"], train["left_out"], train["skipped"]) == (10, 10, 0, 0, [])
        assert train["files"] == [str(questions)] and train["repeated_sequences"] == 0
        assert train["tokens"] > train["tokens_with_loss"] > 0
        assert sum(b["count"] for b in train["lengths"]["bins"]) == 10
        assert held_out["sequences"] == 3 and held_out["skipped"][0].startswith(f"{other}:4: ")
        assert found["in_training_and_held_out"] == {
            "samples": [{"held_out": f"{other}:1", "train": f"{questions}:4"}],
            "prompts": [{"held_out": f"{other}:2", "train": f"{questions}:5"}],
        }
        assert (found["sequences_per_step"], found["steps_per_epoch"], found["total_steps"]) == (4, 3, 3)
        (example,) = found["examples"]
        assert example["where"] == f"{questions}:1" and [piece["loss"] for piece in example["pieces"]] == [False, True]
        text = fine("data", "--model", BASE_MODEL, "--data", questions, "--eval-data", other, *COLUMNS, "--skip-bad", 1)
        assert f"1 of 3 held-out sequences are trained on, too; {other}:1 is {questions}:4" in text
        assert f"1 of 3 held-out sequences have a prompt that is trained on; {other}:2 is {questions}:5" in text
        assert f"skipped   {other}:4: columns: expected the column 'question'" in text

    def test_what_is_cut_and_left_out_is_counted(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        rows = [
            {"prompt": "a", "completion": " b" * 99},
            {"prompt": "a" + " a" * 99, "completion": " b"},
            {"prompt": "a", "completion": " b"},
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = data_of("--data", path, "--max-seq-length", 20)["train"]
        assert (found["examples"], found["sequences"], found["cut"], found["left_out"]) == (3, 2, 2, 1)
        assert found["lengths"]["longest"] == 20

    def test_steps_are_those_of_a_trainer(self, questions: Path, tmp_path: Path) -> None:
        for flags in ((), ("--num-train-epochs", 2.5), ("--max-steps", 7), ("--per-device-train-batch-size", 3)):
            found = data_of("--data", questions, *COLUMNS, *flags)
            options = {str(k).strip("-").replace("-", "_"): v for k, v in zip(flags[::2], flags[1::2], strict=True)}
            model = lc.load_model(BASE_MODEL, progress=False)
            model.add_adapter(r=2)
            data = lc.load_dataset(questions, model.tokenizer, columns="prompt=question,completion=answer")
            trainer = lc.Trainer(model, data, lc.TrainConfig(output_dir=str(tmp_path), method="lora", **options))
            assert (found["steps_per_epoch"], found["total_steps"]) == (trainer.steps_per_epoch, trainer.total_steps)

    def test_a_picture_of_the_lengths(self, questions: Path, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="needs matplotlib (the plot extra)")
        fine("data", "--model", BASE_MODEL, "--data", questions, *COLUMNS, "--plot", tmp_path / "l.png")
        assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")
        assert "plot: expected another place than data" in refused(
            "data", "--model", BASE_MODEL, "--data", questions, *COLUMNS, "--plot", questions
        )

    def test_it_needs_data_and_a_tokenizer(self, questions: Path, tmp_path: Path) -> None:
        assert "data: expected a path, got nothing; give --data PATH" in refused("data", "--model", BASE_MODEL)
        assert "expected a model folder" in refused("data", "--model", questions, "--data", questions)

    def test_of_a_model_no_weight_is_read(self, questions: Path, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr("lora_c.model.loading.load_weights", None)
        monkeypatch.setattr("lora_c.model.opening.load_weights", None)
        tokenizer = load_tokenizer(BASE_MODEL)
        monkeypatch.undo()
        known = lc.load_model(BASE_MODEL, progress=False).tokenizer
        assert tokenizer.model_context_length == known.model_context_length
        assert tokenizer.model_vocab_size == known.model_vocab_size

    def test_a_gguf_file_has_a_tokenizer_too(self, tmp_path: Path, stories: Path) -> None:
        from lora_c.gguf import write_model

        write_model(tmp_path / "m.gguf", lc.load_model(stories, progress=False), "F32")
        (tmp_path / "a.jsonl").write_text('{"prompt": "Once", "completion": " upon"}\n')
        found = [json.loads(fine("data", "--model", model, "--data", tmp_path / "a.jsonl", "--json"))
                 for model in (stories, tmp_path / "m.gguf")]  # fmt: skip
        assert found[0] == found[1]

    def test_files_flags_patterns_and_pipes(self, questions: Path, tmp_path: Path) -> None:
        other = tmp_path / "qb.jsonl"
        other.write_text(json.dumps(QUESTIONS[0]) + "\n")
        for flags in (
            ("--data", questions, "--data", other),
            ("--data", f"{questions},{other}"),
            ("--data", tmp_path / "q?.jsonl"),
        ):
            assert data_of(*flags, *COLUMNS)["train"]["files"] == [str(questions), str(other)]
        for flags in (("--data", questions, other), (f"--data={questions}", other)):  # as a shell expands a pattern
            assert data_of(*flags, *COLUMNS)["train"]["files"] == [str(questions), str(other)]
        assert run("data", "--model", BASE_MODEL, "--data", questions, "--json", other).exit_code == 2
        settings = tmp_path / "s.yaml"
        settings.write_text(
            yaml.safe_dump({"data": str(tmp_path / "q*.jsonl"), "columns": {"prompt": "question", "completion": "answer"}})
        )
        assert data_of("--config", settings)["train"]["files"] == [str(questions), str(other)]
        lists = {"data": [str(tmp_path / "qb*"), str(tmp_path / "q[a]*")], "columns": "prompt=question,completion=answer"}
        settings.write_text(yaml.safe_dump(lists))
        assert data_of("--config", settings)["train"]["files"] == [str(other), str(questions)]
        settings.write_text(yaml.safe_dump({"data": [str(tmp_path / "q?.jsonl")]}))
        assert data_of("--config", settings, *COLUMNS)["train"]["files"] == [str(questions), str(other)]
        assert f"the folder '{tmp_path}' holds qa.jsonl" in refused(
            "data", "--model", BASE_MODEL, "--data", tmp_path / "*.csv"
        )
        piped = fine("data", "--model", BASE_MODEL, "--data", "-", *COLUMNS, "--json", input=questions.read_text())
        assert json.loads(piped)["train"]["sequences"] == 10
        twice = refused(
            "data", "--model", BASE_MODEL, "--data", "-", "--eval-data", "-", *COLUMNS, input=questions.read_text()
        )
        assert "expected standard input (-) once" in twice

    def test_piped_and_in_a_pipe_by_a_shell(self, questions: Path) -> None:
        command = [sys.executable, "-m", "lora_c", "data", "--model", str(BASE_MODEL), "--data", "-", *COLUMNS]
        environment = os.environ | {"PYTHONPATH": str(Path(lc.__file__).parents[1]), "COLUMNS": "60"}
        with open(questions, "rb") as file:
            done = subprocess.run(command, stdin=file, capture_output=True, timeout=120, env=environment)
        assert done.returncode == 0 and b"\x1b" not in done.stdout + done.stderr and done.stderr.startswith(b"note ")
        lines = done.stdout.decode().splitlines()
        assert "1 of 10  standard input:1  12 tokens, 6 with loss" in lines
        assert all(len(line) <= 60 for line in lines if "###" in line)


class TestTrainAndEval:
    def test_a_run_reads_columns_and_keeps_them(self, questions: Path, tmp_path: Path) -> None:
        with open(questions, "a") as file:
            file.write("no json\n")
        out = tmp_path / "out"
        flags = ("--model", BASE_MODEL, "--data", questions, "--output-dir", out, "--method", "lora", "--max-steps", 1)
        known = refused("train", *flags)
        assert known.endswith("give --columns prompt=question,completion=answer (in Python: columns={'prompt': 'question', "
                              "'completion': 'answer'})")  # fmt: skip
        assert "qa.jsonl:11: expected a JSON object" in refused("train", *flags, *COLUMNS)
        done = run("train", *flags, *COLUMNS, "--skip-bad", 2)
        assert done.exit_code == 0, done.output
        assert f"skipped   {questions}:11: expected a JSON object, got 'no json'" in done.stderr
        kept = yaml.safe_load((out / "config.yaml").read_text())
        assert kept["columns"] == {"prompt": "question", "completion": "answer"} and kept["skip_bad"] == 2
        seen = json.loads(fine("data", "--config", out / "config.yaml", "--json"))
        assert seen["train"]["sequences"] == 10 and len(seen["train"]["skipped"]) == 1 and seen["total_steps"] == 1
        again = run("train", "--config", out / "config.yaml", "--output-dir", tmp_path / "again")
        assert again.exit_code == 0, again.output
        assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == (
            out / "adapter_model.safetensors"
        ).read_bytes()

    def test_eval_reads_as_train_does(self, questions: Path) -> None:
        flags = ("eval", "--model", BASE_MODEL, "--data", questions, "--json")
        assert "give --columns prompt=question,completion=answer" in refused(*flags)
        found = json.loads(fine(*flags, *COLUMNS))
        assert found["sequences"] == 10
        piped = json.loads(fine("eval", "--model", BASE_MODEL, "--data", "-", "--json", *COLUMNS, input=questions.read_text()))
        assert piped == found

    def test_the_report_of_a_merge_reads_columns_too(self, questions: Path, tmp_path: Path) -> None:
        model = lc.load_model(BASE_MODEL, progress=False)
        model.add_adapter(r=2)
        model.save_adapter(tmp_path / "adapter")
        flags = ("--model", BASE_MODEL, "--adapter", tmp_path / "adapter", "--output-dir", tmp_path / "merged")
        assert "give --columns prompt=question,completion=answer" in refused("merge", *flags, "--data", questions)
        fine("merge", *flags, "--data", questions, *COLUMNS)
        assert (tmp_path / "merged" / "merge_report.json").exists()

    def test_a_key_that_no_command_knows_is_refused(self, questions: Path, tmp_path: Path) -> None:
        settings = tmp_path / "s.yaml"
        settings.write_text(f"model: {BASE_MODEL}\ndata: {questions}\nlearning_rate: 1e-3\nlora_alpha: 3\nlearning_speed: 1\n")
        assert "unknown key 'learning_speed'" in refused("data", "--config", settings)
        assert "unknown key 'learning_rate'" in refused("eval", "--config", settings)

    def test_wrong_columns_are_one_line(self, questions: Path, tmp_path: Path) -> None:
        for value, message in (("question", "expected NAME=COLUMN pairs"), ("promt=question", "did you mean 'prompt'")):
            assert message in refused("eval", "--model", BASE_MODEL, "--data", questions, "--columns", value)
        settings = tmp_path / "s.yaml"
        settings.write_text("columns:\n  promt: question\n")
        done = run("eval", "--config", settings, "--model", BASE_MODEL, "--data", questions)
        assert isinstance(done.exception, ConfigError) and f"{settings}:1: columns: " in str(done.exception)


def test_held_out_data_that_is_trained_on_is_told(questions: Path, tmp_path: Path) -> None:
    with pytest.warns(LoraCWarning, match="eval_data: qa.jsonl is trained on too"):
        found = data_of("--data", questions, "--eval-data", questions, *COLUMNS)
    assert len(found["in_training_and_held_out"]["samples"]) == 10


@pytest.mark.parametrize(("skipped", "listed"), [(99, 99), (100, 100), (103, 100)])
def test_a_hundred_skipped_examples_are_listed(skipped: int, listed: int, capsys: pytest.CaptureFixture[str]) -> None:
    data = Dataset([], source="a.jsonl", skipped=[f"line {i}" for i in range(skipped)])
    describe_data("data", data, err=False)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("data      a.jsonl: 0 sequences") and first.endswith(f"{skipped} skipped (bad)")
    expected = [f"{'' if i else 'skipped':<9} line {i}" for i in range(listed)]
    assert lines == expected + ([f"{'':<9} … and {skipped - listed} more"] if skipped > listed else [])
