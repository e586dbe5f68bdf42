"""Tokenizers of our GGUF files in llama.cpp itself: the ids that our reader gives, and the text of every id.

Needs llama-cpp-python, which is built from source for minutes; the tests are skipped where it is absent.
"""

from __future__ import annotations

import ctypes
import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_tokenizers import ROWS, Case, all_cases, write_folder

import lora_c as lc
from lora_c.gguf import write_model
from lora_c.gguf.sample_texts import SAMPLE_TEXTS, texts_around

llama = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python", exc_type=ImportError)
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def corpus() -> list[str]:
    """Lines to train on and to compare."""
    if not DATA.exists():
        return []
    stories = (DATA / "tinystories" / "tinystories_sample.txt").read_text(encoding="utf-8").splitlines()[:900]
    sums = (DATA / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:800]
    return [line[:80] for line in stories + [json.loads(line)["answer"] for line in sums]]


LINES = corpus()
ACCEPTED = [case for case in all_cases(LINES) if case.refused is None] if LINES else []


class Vocabulary:
    """The tokenizer of a file in llama.cpp."""

    def __init__(self, path: Path) -> None:
        options = llama.llama_model_default_params()
        options.vocab_only = True
        self.model = llama.llama_model_load_from_file(os.fsencode(path), options)
        assert self.model, path
        self.vocab = llama.llama_model_get_vocab(self.model)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text."""
        raw = text.encode()
        ids = (llama.llama_token * (len(raw) + 8))()
        count = llama.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), special, True)
        assert count >= 0
        return list(ids[:count])

    def piece(self, token: int) -> bytes:
        """The text of an id, control tokens included."""
        buffer = ctypes.create_string_buffer(512)
        count = llama.llama_token_to_piece(self.vocab, token, buffer, 512, 0, True)
        return buffer.raw[:count]

    def close(self) -> None:
        llama.llama_model_free(self.model)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Without llama.cpp's log."""

    @llama.llama_log_callback
    def ignore(level: int, text: bytes, data: object) -> None:
        pass

    llama.llama_log_set(ignore, ctypes.c_void_p(0))
    yield


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_ids_are_those_of_llama_cpp(case: Case, llama_folder, tmp_path: Path) -> None:
    folder = llama_folder(vocab_size=ROWS)
    write_folder(folder, case)
    write_model(tmp_path / "m.gguf", lc.load_model(folder, progress=False), "F32")
    ours = lc.load_model(tmp_path / "m.gguf", progress=False).tokenizer.backend
    theirs = Vocabulary(tmp_path / "m.gguf")
    try:
        added = [token.content for token in ours.get_added_tokens_decoder().values()]
        texts = [*SAMPLE_TEXTS, *(text for token in added for text in texts_around(token)), *LINES]
        if case.name == "qwen2":  # the model composes Unicode, llama.cpp takes it as it comes
            texts = [text for text in texts if unicodedata.is_normalized("NFC", text)]
        other = [text for text in texts if ours.encode(text).ids != theirs.encode(text)]
        other += [text for text in texts if ours.encode(text, add_special_tokens=False).ids != theirs.encode(text, False)]
        assert not other, other[:3]
        for i in range(ours.get_vocab_size()):
            want = ours.decode([0, i], skip_special_tokens=False)  # behind another token nothing is stripped
            assert (theirs.piece(0) + theirs.piece(i)).decode(errors="replace") == want, i
    finally:
        theirs.close()
