"""Special tokens that the several files of a folder name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from lora_c.errors import CheckpointError, DataError
from lora_c.notices import LoraCWarning
from lora_c.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "special_tokens_golden.json"
BASE = json.loads(GOLDEN.read_text(encoding="utf-8"))["bases"]["byte_level"]
TOKEN = {"content": "<|im_end|>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}


def folder_of(root: Path, config: dict[str, Any], files: dict[str, Any] | None = None, **state: Any) -> Path:
    root.mkdir(exist_ok=True)
    for name, value in {"tokenizer.json": BASE | state, "tokenizer_config.json": config, **(files or {})}.items():
        (root / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return root


def load(folder: Path) -> Tokenizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LoraCWarning)  # ids that a file gives otherwise: a test of its own
        return Tokenizer.from_folder(folder)


def test_tokens_of_every_combination_of_files_are_those_of_transformers(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(golden["cases"]) >= 200
    for i, case in enumerate(golden["cases"]):
        state = golden["bases"][case["base"]] | {key: case[key] for key in ("added_tokens", "post_processor")}
        folder = folder_of(tmp_path / str(i), case["config"], case["files"], **state)
        tokenizer, right = load(folder), case["answer"]
        ids = [tokenizer.encode(text) for text in golden["probes"]]
        assert ids == right["ids"], i
        assert [tokenizer.decode(row) for row in ids] == right["texts"], i
        named = {key: [text, tokenizer.token_to_id(text)] for key, text in tokenizer.special_tokens.items()}
        assert named == right["named"], i
        assert (tokenizer.extra_special_tokens, tokenizer.vocab_size) == (right["extra"], right["size"]), i
        assert tokenizer.apply_chat_template(golden["messages"]) == right["render"], i


def test_what_was_saved_reads_as_the_same_tokenizer(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for i, case in enumerate(golden["cases"][:60]):
        state = golden["bases"][case["base"]] | {key: case[key] for key in ("added_tokens", "post_processor")}
        one = load(folder_of(tmp_path / str(i), case["config"], case["files"], **state))
        (tmp_path / f"{i} again").mkdir()
        one.save(tmp_path / f"{i} again")
        other = Tokenizer.from_folder(tmp_path / f"{i} again")
        assert [other.encode(text) for text in golden["probes"]] == [one.encode(text) for text in golden["probes"]]
        assert (other.special_tokens, other.templates) == (one.special_tokens, one.templates)


def test_an_id_that_does_not_hold_is_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"eos_token": "<|im_end|>", "added_tokens_decoder": {"9000": TOKEN}})
    with pytest.warns(LoraCWarning, match=r"<\|im_end\|> is 2, not 9000"):
        assert Tokenizer.from_folder(folder).eos_token_id == 2


def test_split_special_tokens_is_heeded(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder_of(tmp_path, {"eos_token": "<|im_end|>", "split_special_tokens": True}))
    assert len(tokenizer.encode("<|im_end|>")) > 1


@pytest.mark.parametrize(
    ("config", "files", "message"),
    [
        ({"eos_token": 3}, {}, "eos_token: expected the text of a token, got '3'"),
        ({"eos_token": {"content": None}}, {}, "eos_token: expected the text"),
        ({"added_tokens_decoder": {"x": TOKEN}}, {}, "expected the id of a token, got 'x'"),
        ({"added_tokens_decoder": {"3": "x"}}, {}, "added_tokens_decoder: 3: expected a token with its flags"),
        ({"added_tokens_decoder": {"3": TOKEN | {"lstrip": "no"}}}, {}, "lstrip: expected true or false, got 'no'"),
        ({"added_tokens_decoder": []}, {}, "added_tokens_decoder: expected ids and tokens"),
        ({"extra_special_tokens": "x"}, {}, "extra_special_tokens: expected a list of tokens, got str"),
        ({}, {"added_tokens.json": {"<x>": "seven"}}, "added_tokens.json: <x>: expected the id of a token, got 'seven'"),
        ({}, {"special_tokens_map.json": "["}, "special_tokens_map.json"),
    ],
)
def test_files_that_name_no_token_are_refused(tmp_path: Path, config: Any, files: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_folder(folder_of(tmp_path, config, files))


PANIC = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


def test_a_panic_of_the_library_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer.from_folder(folder_of(tmp_path, {}, pre_tokenizer=PANIC))
    with pytest.raises(DataError, match="text: expected a text that the tokenizer can read"):
        tokenizer.encode("a" * 40 + "!")
    with pytest.raises(DataError, match="expected a text"):
        tokenizer.encode_with_offsets("a" * 40 + "!")
    with pytest.raises(DataError, match="ids: expected token ids"):
        tokenizer.decode([-1])
    capfd.readouterr()  # the library's own words on the panic


@pytest.mark.parametrize(
    "model", [{"type": "BPE"}, {"type": "WordPiece", "vocab": {}}, {"type": "Unigram", "vocab": [], "unk_id": 4}]
)
def test_a_damaged_tokenizer_is_one_line(tmp_path: Path, model: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="expected a tokenizer of the tokenizers library"):
        Tokenizer.from_folder(folder_of(tmp_path, {}, model=model))
