"""Tasks from data to numbers: against transformers' records and float64, and `lora-c eval --task`."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import called, make_workplace

import lora_c as lc
from lora_c.configs import GenerationConfig
from lora_c.data.questions import Question
from lora_c.errors import DataError
from lora_c.model.model import Model
from lora_c.tasks import TaskOptions, run_task
from lora_c.tasks.likelihoods import _chosen, choice_scores, continued_sample, sample_losses
from lora_c.tasks.prompts import choice_ids
from lora_c.training.evaluation import evaluate_loss


@pytest.fixture(scope="module")
def story_model(stories: Path) -> Model:
    return lc.load_model(stories, progress=False)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("w"))


# --- likelihoods ---------------------------------------------------------------------------------------------------------


def golden_log_likelihood(golden: Any, begin: int, end: int) -> float:
    """Of the tokens from begin to end in transformers' logits, in float64."""
    logits = golden["logits"][begin - 1 : end - 1].astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(shifted, golden["input_ids"][begin:end, None].astype(int), axis=1)[:, 0]
    return float((chosen - np.log(np.exp(shifted).sum(axis=1))).sum())


@pytest.mark.parametrize("max_tokens", [1, 40, 4096])
def test_log_likelihoods_are_those_of_transformers(story_model: Model, stories: Path, max_tokens: int) -> None:
    with np.load(stories / "golden_logits.npz") as golden:
        ids = golden["input_ids"].tolist()
        cuts = [(5, 9), (10, 11), (1, 32)]
        pairs = [(ids[:begin], ids[begin:end]) for begin, end in cuts]
        found = list(sample_losses(story_model, map(continued_sample, pairs), max_tokens))
        expected = [golden_log_likelihood(golden, *cut) for cut in cuts]
    assert [n for _, n in found] == [4, 1, 31]
    assert [-loss for loss, _ in found] == pytest.approx(expected, abs=2e-4)


def test_choices_are_chosen_by_likelihood_and_by_likelihood_per_byte(story_model: Model) -> None:
    """The reference decoder computes each choice alone in float64."""
    choices = ("park", "big red ball that was too high", "é dog")
    question = Question("x:1", "Lily wanted to play in the", choices=choices, right=0, between=" ")
    pairs = choice_ids(story_model, question, as_chat=False)
    assert all(before == pairs[0][0] for before, _ in pairs)
    assert [story_model.tokenizer.decode([*before, *after]) for before, after in pairs] == [
        f"{question.prompt} {choice}" for choice in choices
    ]
    scores, (found,) = choice_scores(story_model, [question], [pairs], 4096)
    expected = []
    for before, after in pairs:
        logits = np.asarray(story_model.logits([*before, *after]), np.float64)[len(before) - 1 : -1]
        chosen = logits[np.arange(len(after)), after]
        expected.append(float((chosen - np.log(np.exp(logits).sum(axis=1))).sum()))
    assert found["log_likelihoods"] == pytest.approx(expected, abs=1e-3)
    per_byte = np.array(expected) / [4, 30, 6]  # é is two bytes
    assert found["chosen"] == int(np.argmax(expected)) == 0 and found["chosen_norm"] == int(np.argmax(per_byte))
    assert scores["accuracy"].value == 1.0 and scores["accuracy_norm"].value == float(found["chosen_norm"] == 0)


def test_bytes_are_those_of_utf_8() -> None:
    question = Question("x:1", "x", choices=("\u00e9\u00e9\u00e9", "abcd"), right=0)  # six bytes, four bytes
    found = _chosen(question, np.array([-6.0, -5.0]))  # by the byte -1 and -1.25, by the character -2 and -1.25
    assert (found["chosen"], found["chosen_norm"]) == (1, 0) and (found["accuracy"], found["accuracy_norm"]) == (0.0, 1.0)


def test_a_long_choice_loses_by_its_sum_and_wins_by_its_bytes(story_model: Model) -> None:
    story = "Once upon a time, there was a little girl named"
    choices = ("Tom", "Lily. She loved to play outside in the park.")
    question = Question("x:1", story, choices=choices, right=1, between=" ")
    outcome = run_task(story_model, "multiple-choice", [question], TaskOptions())
    assert outcome.examples[0]["chosen_norm"] == 1 and outcome.scores["accuracy_norm"].value == 1.0
    totals = outcome.examples[0]["log_likelihoods"]
    assert outcome.scores["accuracy"].value == float(totals[1] > totals[0])


def test_choices_in_a_chat_are_the_answer_after_the_template() -> None:
    model = lc.load_model("demo", progress=False)
    question = Question("x:1", "Question: Why?\nAnswer:", choices=("So.", "No."), between=" ", chat_prompt="Why?")
    (before, after), _ = choice_ids(model, question, as_chat=True)
    chat = [{"role": "user", "content": "Why?"}]
    text = model.tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert before == model.tokenizer.encode(text, add_special_tokens=False)
    whole = model.tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": "So."}])
    assert model.tokenizer.encode(whole, add_special_tokens=False)[: len(before) + len(after)] == [*before, *after]


def test_perplexity_is_the_loss_of_all_tokens(story_model: Model) -> None:
    texts = ["Once upon a time, there was a dog.", "The end.", "Lily went to the park and saw a big red ball."]
    data = lc.Dataset.from_records([{"text": text} for text in texts], story_model.tokenizer)
    outcome = run_task(story_model, "perplexity", data, TaskOptions(max_tokens=30))
    loss = evaluate_loss(story_model, data)
    assert outcome.scores["loss"].value == pytest.approx(loss, rel=1e-6)
    assert outcome.scores["perplexity"].value == pytest.approx(math.exp(loss), rel=1e-5)
    assert [one["loss"] for one in outcome.examples] == pytest.approx([story_model.loss(s.input_ids) for s in data], abs=1e-4)


# --- written answers -----------------------------------------------------------------------------------------------------


def test_answers_are_the_greedy_text_of_transformers(story_model: Model, stories: Path) -> None:
    text = (stories / "greedy200.txt").read_text(encoding="utf-8")
    sentences = [part + "." for part in text.split(".")[:4]]
    questions = [Question(f"x:{i}", "".join(sentences[: i + 1]), (sentences[i + 1].removesuffix("."),)) for i in range(3)]
    questions.append(Question("x:9", sentences[0], ("Something else",)))
    seen: list[tuple[int, int]] = []
    options = TaskOptions(generation=GenerationConfig(max_new_tokens=60, stop_strings=["."], precision="exact"))
    outcome = run_task(story_model, "exact-match", questions, options, lambda done, total: seen.append((done, total)))
    assert [one["exact_match"] for one in outcome.examples] == [1.0, 1.0, 1.0, 0.0]
    assert outcome.scores["exact_match"].value == 0.75 and seen[-1] == (4, 4)
    assert outcome.examples[0]["answer"] == sentences[1].removesuffix(".")


def test_what_counts_by_itself_is_another_thing_for_each_task(story_model: Model) -> None:
    options = TaskOptions(generation=GenerationConfig(max_new_tokens=60, stop_strings=["."]))
    prompt = "Once upon a time, there was a little girl named Lily."
    for reference, expected in (
        ("  She loved to play outside  in the park", 1.0),
        ("she loved to play outside in the park!", 0.0),
    ):
        question = Question("x:1", prompt, (reference,))
        assert run_task(story_model, "exact-match", [question], options).scores["exact_match"].value == expected
        assert run_task(story_model, "f1", [question], options).scores["exact_match"].value == 1.0  # as SQuAD's


# --- the command ---------------------------------------------------------------------------------------------------------


def evaluate(folder: Path, *words: str) -> Any:
    return called(folder, ["eval", "--model", "model", *words])


def write(folder: Path, name: str, *records: Any) -> str:
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return name


CHOICES = {"question": "Which?", "choices": ["red", "green"], "answer": "A"}


def test_base_and_adapter_stand_side_by_side(workplace: Path) -> None:
    words = ("--data", "chat.jsonl", "--adapter", "run", "--baseline")
    found = json.loads(evaluate(workplace, *words, "--json", "--resamples", "50", "--seed", "3").stdout)
    alone = json.loads(evaluate(workplace, "--data", "chat.jsonl", "--json").stdout)
    adapter = json.loads(evaluate(workplace, "--data", "chat.jsonl", "--adapter", "run", "--json").stdout)
    assert found["task"] == "perplexity" and found["examples"] == 12 and (found["resamples"], found["seed"]) == (50, 3)
    assert found["baseline"]["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert found["loss"] == pytest.approx(adapter["loss"], rel=1e-6)
    difference = found["difference"]["loss"]
    assert difference["value"] == pytest.approx(adapter["loss"] - alone["loss"], rel=1e-4)
    assert difference["low"] < difference["value"] < difference["high"] < 0 and difference["level"] == 0.95
    table = evaluate(workplace, *words, "--output", "side.jsonl").stdout.splitlines()
    records = [json.loads(line) for line in (workplace / "side.jsonl").read_text(encoding="utf-8").splitlines()]
    tokens = sum(record["tokens"] for record in records)
    for of_all, of_each in ((alone, [record["baseline"] for record in records]), (adapter, records)):
        assert sum(one["loss"] * one["tokens"] for one in of_each) / tokens == pytest.approx(of_all["loss"], rel=1e-6)
    assert table[1].split() == ["base", "adapter", "difference", "95", "%", "interval"] and table[2].startswith("loss ")


def test_two_adapters_stand_side_by_side(workplace: Path) -> None:
    words = ["--model", "model", "--data", "chat.jsonl", "--max-steps", "6", "--lr", "1e-2", "--output-dir", "other"]
    assert called(workplace, ["train", *words, "--peft-type", "LORA,IA3"]).returncode == 0
    words = ["--data", "chat.jsonl", "--adapter", "run", "--baseline", "other"]
    done = evaluate(workplace, *words, "--json", "--resamples", "50")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    alone = {name: json.loads(evaluate(workplace, "--data", "chat.jsonl", "--adapter", name, "--json").stdout)
             for name in ("run", "other")}  # fmt: skip
    assert found["loss"] == pytest.approx(alone["run"]["loss"], rel=1e-6) and found["baseline_adapter"] == "other"
    assert found["baseline"]["loss"] == pytest.approx(alone["other"]["loss"], rel=1e-6)
    difference = found["difference"]["loss"]
    assert difference["value"] == pytest.approx(alone["run"]["loss"] - alone["other"]["loss"], rel=1e-4)
    assert 0 < difference["low"] < difference["value"] < difference["high"]
    table = evaluate(workplace, *words, "--task", "f1", "--max-new-tokens", "4").stdout.splitlines()
    assert table[1].split() == ["other", "run", "difference", "95", "%", "interval"], table
    (workplace / "file.yaml").write_text("model: model\ndata: chat.jsonl\nadapter: run\nbaseline: true\n")
    of_base = json.loads(called(workplace, ["eval", "--config", "file.yaml", "--json"]).stdout)
    assert of_base["baseline_adapter"] is None and of_base["baseline"]["loss"] > found["loss"]
    done = evaluate(workplace, *words[:-1], "nowhere")
    assert done.returncode == 1 and "nowhere" in done.stderr and "Traceback" not in done.stderr


def test_the_block_of_the_page_runs(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs/EVALUATION.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(workplace)
    exec(compile(block, "EVALUATION.md", "exec"), {})
    said = capsys.readouterr().out
    words = ["--data", "chat.jsonl", "--adapter", "run", "--baseline", "--task", "f1", "--max-new-tokens", "8", "--json"]
    found = json.loads(evaluate(workplace, *words).stdout)
    assert f"{found['f1']} " in said and f"low={found['difference']['f1']['low']}" in said


def test_long_work_says_how_far_it_is(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_c.cli import task_report

    monkeypatch.setattr(task_report, "_INTERVAL", 0.0)
    words = ["--data", "chat.jsonl", "--adapter", "run", "--baseline"]
    assert "scored    3 of 12 with the adapter" in evaluate(workplace, *words).stderr
    done = evaluate(workplace, *words, "--task", "f1", "--max-new-tokens", "2")
    assert "answers   12 of 12 of the base" in done.stderr
    data = write(workplace, "scored.jsonl", CHOICES, CHOICES)
    assert "scored    1 of 2\n" in evaluate(workplace, "--data", data, "--task", "multiple-choice").stderr


def test_each_example_has_a_record(workplace: Path) -> None:
    data = write(workplace, "two.jsonl", {"prompt": "Hello", "references": ["x", "y"]}, {"prompt": "Bye", "completion": "z"})
    words = ["--data", data, "--task", "f1", "--max-new-tokens", "4", "--output", "f1.jsonl"]
    done = evaluate(workplace, *words, "--adapter", "run", "--baseline")
    assert done.returncode == 0, done.stderr
    assert "2 prompts are asked as they stand" in done.stderr and "answers " not in done.stderr
    records = [json.loads(line) for line in (workplace / "f1.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["where"] for record in records] == ["two.jsonl:1", "two.jsonl:2"]
    assert (
        records[0]["references"] == ["x", "y"] and {"answer", "compared", "f1", "exact_match"} <= records[0]["baseline"].keys()
    )
    again = evaluate(workplace, *words)
    assert again.returncode == 2 and "--output f1-2.jsonl or --overwrite" in again.stderr
    assert evaluate(workplace, *words, "--overwrite").returncode == 0
    assert "baseline" not in json.loads((workplace / "f1.jsonl").read_text(encoding="utf-8").splitlines()[0])


def test_a_run_that_fails_leaves_the_records_of_before(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_c.cli import task_report

    (workplace / "kept.jsonl").write_text("kept\n", encoding="utf-8")

    def broken(item: Any) -> dict[str, Any]:
        if item.where.endswith(":3"):
            raise DataError("in the middle of the file")
        return {"where": item.where}

    monkeypatch.setattr(task_report, "_asked", broken)
    done = evaluate(workplace, "--data", "chat.jsonl", "--output", "kept.jsonl", "--overwrite")
    assert done.returncode == 1 and "in the middle" in done.stderr
    assert (workplace / "kept.jsonl").read_text(encoding="utf-8") == "kept\n"
    assert not [path for path in workplace.iterdir() if path.name.startswith(".kept")]


def test_multiple_choice_on_the_command_line(workplace: Path) -> None:
    data = write(workplace, "choices.jsonl", CHOICES, CHOICES | {"answer": 1})
    words = ["--data", data, "--task", "multiple-choice", "--json", "--output"]
    plain = json.loads(evaluate(workplace, *words, "c1.jsonl").stdout)
    chat = json.loads(evaluate(workplace, *words, "c2.jsonl", "--apply-chat-template").stdout)
    assert plain["accuracy"] == chat["accuracy"] == 0.5 and plain["examples"] == 2  # the same question with both answers
    first, second = (
        json.loads((workplace / name).read_text(encoding="utf-8").splitlines()[0]) for name in ("c1.jsonl", "c2.jsonl")
    )
    assert first["choices"] == ["red", "green"] and first["right"] == 0 and len(first["log_likelihoods"]) == 2
    assert first["log_likelihoods"] != second["log_likelihoods"]


@pytest.mark.parametrize(("words", "code", "said"), [
    ("--task exactmatch", 2, "'exactmatch' is not one of"),
    ("--task exact-match --normalize squat", 2, "got 'squat'"),
    ("--task bleu --normalize squad", 2, "--normalize: expected --task exact-match or f1 beside it, got bleu"),
    ("--normalize squad", 2, "got none"),
    ("--task perplexity --apply-chat-template", 2, "--apply-chat-template: expected --task"),
    ("--task f1 --max-seq-length 9", 2, "--max-seq-length: expected --task perplexity beside it, got f1"),
    ("--task f1 --batch-tokens 9", 2, "--batch-tokens: expected --task perplexity or multiple-choice"),
    ("--max-new-tokens 4", 2, "--max-new-tokens: expected --task exact-match"),
    ("--seed 3", 2, "--seed: expected --baseline"),
    ("--baseline", 2, "--baseline: expected --adapter (or --run) beside it"),
    ("--task multiple-choice", 1, "chat.jsonl:1: expected"),
    ("--task f1 --resamples 1 --adapter run --baseline", 2, "resamples"),
    ("--task f1 --max-new-tokens 0", 2, "max-new-tokens"),
    ("--task f1 --output /proc/nowhere/x", 1, "/proc/nowhere"),
    ("--task f1 --output /proc/x", 1, "/proc/x"),
    ("--task f1 --output chat.jsonl", 2, "another place than data"),
    ("--task f1 --limit 0", 2, "limit"),
])  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(workplace: Path, words: str, code: int, said: str) -> None:
    done = evaluate(workplace, "--data", "chat.jsonl", *words.split())
    assert done.returncode == code, done.stderr
    assert said in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr
    assert "answers   " not in done.stderr  # before the work


def test_a_classifier_and_a_model_without_a_template_are_refused(workplace: Path, stories: Path) -> None:
    done = called(workplace, ["eval", "--model", "c", "--data", "chat.jsonl", "--task", "f1"])
    assert done.returncode == 2 and "expected a language model, got a classifier" in done.stderr
    words = ["--data", write(workplace, "c3.jsonl", CHOICES), "--task", "multiple-choice", "--apply-chat-template"]
    done = called(workplace, ["eval", "--model", str(stories), *words])
    assert done.returncode == 2 and "--apply-chat-template: expected a model with a chat template, got none" in done.stderr


def test_what_does_not_fit_is_named_by_its_line_and_can_be_left_out(workplace: Path) -> None:
    long = CHOICES | {"choices": ["word " * 600, "no"]}
    data = write(workplace, "long.jsonl", CHOICES, long)
    done = evaluate(workplace, "--data", data, "--task", "multiple-choice")
    assert done.returncode == 1 and "long.jsonl:2: expected at most the" in done.stderr
    done = evaluate(workplace, "--data", data, "--task", "multiple-choice", "--skip-bad", "1")
    assert done.returncode == 0 and "skipped   long.jsonl:2" in done.stdout
    data = write(workplace, "asked.jsonl", {"prompt": "word " * 3000, "completion": "x"})
    done = evaluate(workplace, "--data", data, "--task", "f1")
    assert done.returncode == 1 and "asked.jsonl:1: prompt: expected fewer tokens than the model's context" in done.stderr
