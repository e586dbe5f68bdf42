"""Records as questions: prompts with references, and choices with the right one among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lora_c as lc
from lora_c.data import find_files
from lora_c.data.questions import choice_question, written_question
from lora_c.data.reading_questions import Questions, load_questions
from lora_c.errors import ConfigError, DataError
from lora_c.tasks.prompts import choice_ids
from lora_c.text.tokenizer import Tokenizer

USER = {"role": "user", "content": "How many?"}
SAID = {"role": "assistant", "content": "Two."}


@pytest.fixture(scope="module")
def chat() -> Tokenizer:
    """Of the model that ships, with a chat template."""
    return lc.load_model("demo", progress=False).tokenizer


@pytest.fixture(scope="module")
def plain(stories: Path) -> Tokenizer:
    return Tokenizer.from_folder(stories)


@pytest.mark.parametrize(("record", "prompt", "references"), [
    ({"prompt": "2+2=", "completion": "4", "id": 7}, "2+2=", ("4",)),
    ({"prompt": "2+2=", "references": ["4", "four"]}, "2+2=", ("4", "four")),
    ({"prompt": "2+2=", "completion": "4", "references": {"text": ["four"], "answer_start": [1]}}, "2+2=", ("four",)),
    ({"prompt": [USER], "references": "Two."}, [USER], ("Two.",)),
    ({"messages": [USER, SAID], "references": ["Two.", "2"]}, [USER], ("Two.", "2")),
    ({"prompt": [USER], "completion": [SAID]}, [USER], ("Two.",)),
    ({"messages": [USER, SAID, USER, SAID]}, [USER, SAID, USER], ("Two.",)),
    ({"messages": [USER, SAID], "system": "Be brief."}, [{"role": "system", "content": "Be brief."}, USER], ("Two.",)),
    ({"conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Two."}]}, [USER], ("Two.",)),
    ({"instruction": "How many?", "input": "", "output": "Two."}, [USER], ("Two.",)),
])  # fmt: skip
def test_answers_that_are_written(chat: Tokenizer, record: dict[str, Any], prompt: Any, references: tuple[str, ...]) -> None:
    found = written_question(record, chat, "x:1")
    assert (found.prompt, found.references, found.where) == (prompt, references, "x:1")


def test_alpaca_without_a_chat_template_is_its_own_text(plain: Tokenizer) -> None:
    found = written_question({"instruction": "Add", "input": "1", "output": "2"}, plain, "x:1")
    assert found.prompt == "### Instruction:\nAdd\n\n### Input:\n1\n\n### Response:\n" and found.references == ("2",)


@pytest.mark.parametrize(("record", "reason"), [
    ({"text": "A story."}, "perplexity is the task for texts"), ({"prompt": "x", "references": []}, "to be a list"),
    ({"messages": [SAID]}, "a message before the assistant's"), ({"messages": [USER, SAID, USER]}, "the last message"),
    ({"question": "x", "answer": "y"}, "--columns prompt=question,completion=answer"), ({"prompt": "x"}, "'completion'"),
    ({"prompt": "x", "completion": 3}, "'completion' to be a string"),
])  # fmt: skip
def test_what_asks_nothing_is_refused_with_its_place(chat: Tokenizer, record: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=r"^x:1: expected .*") as error:
        written_question(record, chat, "x:1")
    assert reason in str(error.value)


LETTERS = ["red", "green", "blue"]


@pytest.mark.parametrize(("record", "prompt", "right"), [
    ({"prompt": "The sky is ", "choices": LETTERS, "answer": 2}, "The sky is ", 2),
    ({"question": "Which?", "choices": LETTERS, "answer": "B"}, "Question: Which?\nAnswer:", 1),  # MMLU, its letter
    ({"question": "Which?", "choices": LETTERS, "answer": "blue"}, "Question: Which?\nAnswer:", 2),
    ({"question": "Which?", "choices": {"text": LETTERS, "label": ["1", "2", "3"]}, "answerKey": "1"},
     "Question: Which?\nAnswer:", 0),  # ARC
    ({"question_stem": "Which?", "choices": [{"text": t, "label": x} for t, x in zip(LETTERS, "ABC", strict=True)],
      "answerKey": "C"}, "Question: Which?\nAnswer:", 2),  # OpenBookQA
    ({"ctx": "A man sits down. ", "endings": LETTERS, "label": "1"}, "A man sits down.", 1),  # HellaSwag
    ({"prompt": [USER], "choices": LETTERS, "answer": 0}, [USER], 0),
    ({"question": "2+2", "choices": ["3", "4"], "answer": 1}, "Question: 2+2\nAnswer:", 1),
])  # fmt: skip
def test_choices_in_the_forms_that_data_sets_have(record: dict[str, Any], prompt: Any, right: int) -> None:
    found = choice_question(record, "x:1")
    assert (found.prompt, found.right, len(found.choices)) == (prompt, right, 2 if "2+2" in prompt else 3)
    assert found.between == ("" if "prompt" in record else " ")


@pytest.mark.parametrize(("change", "reason"), [
    ({"answer": 3}, "a number from 0 to 2, a letter from A to C or the text of a choice, got '3'"),
    ({"answer": "D"}, "got 'D'"),
    ({"answer": True}, "got 'True'"), ({"answer": None}, "got 'None'"), ({"answer": 1.0}, "got '1.0'"),
    ({"choices": ["1", "0"], "answer": "0"}, "which means several of them"), ({"choices": ["red"]}, "two texts or more"),
    ({"choices": ["red", "red"]}, "'red' twice"), ({"choices": "red,green"}, "list of two texts or more"),
    ({"choices": {"text": LETTERS, "label": ["A", "B"]}}, "a label of its own for each of 3"),
    ({"choices": {"text": LETTERS, "label": ["x", "y", "z"]}, "answer": 0}, "one of the labels x, y, z"),
    ({"question": ""}, "'question' to be a text"),
])  # fmt: skip
def test_choices_without_one_right_answer_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match="^x:1: expected") as error:
        choice_question({"question": "Which?", "choices": LETTERS, "answer": 0} | change, "x:1")
    assert reason in str(error.value)


def test_what_lacks_choices_says_which_columns_to_name() -> None:
    with pytest.raises(DataError, match="--columns question=COLUMN,choices=COLUMN,answer=COLUMN"):
        choice_question({"prompt": "x", "completion": "y"}, "x:1")


# --- files ---------------------------------------------------------------------------------------------------------------


def read(folder: Path, lines: list[Any], tokenizer: Any, **options: Any) -> Questions:
    path = folder / "q.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return load_questions(find_files(path), tokenizer, **{"with_choices": False} | options)


def test_columns_of_other_names(tmp_path: Path, chat: Tokenizer) -> None:
    lines = [{"q": "2+2", "a": "4", "alias": ["4", "four"], "context": "sums"}]
    assert read(tmp_path, lines, chat, columns="prompt=q,completion=a").asked[0].references == ("4",)
    assert read(tmp_path, lines, chat, columns="prompt=q,references=alias").asked[0].references == ("4", "four")
    lines = [{"q": "2+2", "options": ["3", "4"], "a": 1}]
    (found,) = read(tmp_path, lines, chat, with_choices=True, columns="question=q,choices=options,answer=a").asked
    assert found.choices == ("3", "4") and found.right == 1 and found.prompt == "Question: 2+2\nAnswer:"
    with pytest.raises(DataError, match="q.jsonl:1: columns: expected the column 'nothing'"):
        read(tmp_path, lines, chat, columns="prompt=nothing,completion=a")


def test_names_of_tasks_are_refused_where_something_is_learned(tmp_path: Path, chat: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="columns: expected names of what is learned .*, got 'choices', which a task alone"):
        lc.Dataset.from_records([{"o": "x"}], chat, columns={"choices": "o"})


def test_bad_examples_are_refused_or_left_out_and_listed(tmp_path: Path, chat: Tokenizer) -> None:
    good = {"prompt": "2+2=", "completion": "4"}
    lines = [good, {"text": "x"}, "no json\n", good, good]
    with pytest.raises(DataError, match="q.jsonl:2: expected a prompt"):
        read(tmp_path, lines, chat)
    found = read(tmp_path, lines, chat, skip_bad=2)
    assert len(found.asked) == 3 and [line.split(": ")[0][-9:] for line in found.skipped] == ["q.jsonl:2", "q.jsonl:3"]
    with pytest.raises(DataError, match="at most 1 bad examples"):
        read(tmp_path, lines, chat, skip_bad=1)
    assert len(read(tmp_path, lines, chat, limit=1).asked) == 1
    with pytest.raises(ConfigError, match="limit"):
        read(tmp_path, lines, chat, limit=0)
    with pytest.raises(DataError, match="at least one example"):
        read(tmp_path, [], chat)


def test_a_text_file_asks_nothing(tmp_path: Path, chat: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("A story.", encoding="utf-8")
    with pytest.raises(DataError, match="a.txt, a text; perplexity is the task for texts"):
        load_questions(find_files(tmp_path / "a.txt"), chat, with_choices=False)


def test_a_choice_that_is_no_unicode_is_a_bad_example_with_its_line(tmp_path: Path) -> None:
    model = lc.load_model("demo", progress=False)
    records = [{"prompt": "one two", "choices": ["x", text], "answer": 0} for text in ("y", "\ud800")]
    (tmp_path / "choices.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    files = find_files(str(tmp_path / "choices.jsonl"))
    for as_chat in (False, True):
        how: dict[str, Any] = {"with_choices": True, "check": lambda q, chat=as_chat: choice_ids(model, q, chat)}
        with pytest.raises(DataError, match=r"choices.jsonl:2: text: expected valid Unicode"):
            load_questions(files, model.tokenizer, **how)
        found = load_questions(files, model.tokenizer, skip_bad=1, **how)
        assert len(found.asked) == len(found.skipped) == 1
