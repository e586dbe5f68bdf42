"""One line for each way in which the tokenizer of a GGUF file, or the file itself, can be wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import PIECES, pieces, write_file

import lora_c as lc
from lora_c.errors import CheckpointError
from lora_c.gguf.format import Kind, Value
from lora_c.gguf.reader import GGUFFile
from lora_c.gguf.tokenizer import tokenizer_of
from lora_c.gguf.writer import array, text, uint32


def array_of(values: Any, kind: Kind) -> Value:
    return array(np.array(values), kind)


HOSTILE: list[tuple[dict[str, Value], str]] = [
    ({"scores": array_of([0.0] * 265 + [np.nan], Kind.FLOAT32)}, "scores: expected finite numbers, got nan for token 265"),
    ({"scores": array_of([-np.inf] * 266, Kind.FLOAT32)}, "scores: expected finite numbers, got -inf for token 0"),
    ({"scores": array_of([0.0], Kind.FLOAT32)}, "scores: expected 266 numbers, one for each token"),
    ({"scores": array(["x"] * 266, Kind.STRING)}, "scores: expected 266 numbers"),
    ({"token_type": array_of([1] * 267, Kind.INT32)}, "token_type: expected 266 numbers"),
    ({"token_type": uint32(1)}, "token_type: expected 266 numbers"),
    ({"tokens": array([*PIECES[:-1], "ab"], Kind.STRING)}, "tokens: expected each token once, got 'ab' as 263 and as 265"),
    ({"tokens": array_of([1], Kind.INT32)}, "tokens: expected texts, got numbers"),
    ({"tokens": text("abc")}, "tokens: expected texts"),
    ({"tokens": uint32(7)}, "tokens: expected texts"),
    ({"model": array(["llama"], Kind.STRING)}, r"model: expected 'llama' or 'gpt2', got \['llama'\]"),
    ({"model": array_of([1, 2], Kind.INT32)}, "model: expected 'llama' or 'gpt2'"),
    ({"model": text("t5")}, "model: expected 'llama' or 'gpt2', got 't5'"),
    ({"add_space_prefix": text("false")}, "add_space_prefix: expected true or false, got 'false'"),
    ({"add_bos_token": uint32(1)}, "add_bos_token: expected true or false, got '1'"),
    ({"add_eos_token": array_of([1], Kind.INT32)}, "add_eos_token: expected true or false"),
    ({"model": text("gpt2"), "pre": array(["gpt-2"], Kind.STRING)}, "pre: expected one of llama-bpe"),
    ({"model": text("gpt2"), "pre": text("gpt-2"), "merges": array_of([1, 2], Kind.INT32)}, "pairs of tokens, got numb"),
    ({"model": text("gpt2"), "pre": text("gpt-2"), "merges": text("a b")}, "merges: expected pairs of tokens, got a b"),
    ({"model": text("gpt2"), "pre": text("gpt-2"), "merges": uint32(3)}, "merges: expected pairs of tokens, got 3"),
    ({"model": text("gpt2"), "pre": text("gpt-2"), "merges": array(["ab"], Kind.STRING)}, "pairs of tokens, got 'ab'"),
    ({"model": text("gpt2"), "pre": text("gpt-2"), "merges": array(["a b c"], Kind.STRING)}, "merges: expected pairs"),
    ({"model": text("gpt2"), "pre": text("gpt-2"), "merges": array(["b a"], Kind.STRING)}, "merges: expected pairs"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), HOSTILE, ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_tokenizer_is_refused_in_one_line(changes: dict[str, Value], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        pieces(tmp_path, **changes)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


@pytest.mark.parametrize("key", ["tokenizer.chat_template", "tokenizer.chat_template.tool_use"])
def test_a_chat_template_that_is_no_text_is_refused(key: str, tmp_path: Path) -> None:
    values = {"tokenizer.ggml.model": text("llama"), "tokenizer.ggml.tokens": array(PIECES, Kind.STRING), key: uint32(3)}
    with pytest.raises(CheckpointError, match=f"{key}: expected text, got int"):
        tokenizer_of(GGUFFile(write_file(tmp_path / "t.gguf", values, {"a": np.zeros(1)})))


def test_special_ids_outside_the_vocabulary_name_nothing(tmp_path: Path) -> None:
    tokenizer = pieces(tmp_path, bos_token_id=uint32(266), eos_token_id=uint32(2**32 - 1), padding_token_id=text("x"))
    assert set(tokenizer.special_tokens) == {"unk_token"}
    assert tokenizer.encode("a") == [1, PIECES.index("▁a")]  # llama.cpp falls back to 1


@pytest.mark.parametrize("tokens", [array_of([1, 2], Kind.INT32), uint32(7), text("ab"), array(["a"] * 33, Kind.STRING)])
def test_a_model_with_wrong_tokens_is_refused(tokens: Value, llama_file: Callable[..., Path]) -> None:
    path = llama_file(
        tokenizer__ggml__tokens=tokens, tokenizer__ggml__model=text("llama"), tokenizer__ggml__bos_token_id=uint32(1)
    )
    with pytest.raises(CheckpointError, match="tokenizer.ggml.tokens: expected"):
        lc.load_model(path)


def test_more_tokens_than_rows_of_the_embedding_are_refused(tmp_path: Path) -> None:
    values = {"tokenizer.ggml.model": text("llama"), "tokenizer.ggml.tokens": array(PIECES, Kind.STRING)}
    file = GGUFFile(write_file(tmp_path / "t.gguf", values, {"token_embd.weight": np.zeros((265, 4))}))
    with pytest.raises(CheckpointError, match=r"expected at most 265 tokens \(rows of the embedding\), got 266"):
        tokenizer_of(file)


@pytest.mark.parametrize("kind", ["pipe", "loop", "socket"])
def test_what_is_no_regular_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    expected = {"pipe": "got a named pipe", "loop": os.strerror(errno.ELOOP), "socket": "got a socket"}[kind]
    server = socket.socket(socket.AF_UNIX)
    with server:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "loop":
            path.symlink_to(path)
        else:
            with contextlib.chdir(tmp_path) if hasattr(contextlib, "chdir") else contextlib.nullcontext():
                server.bind("m.gguf" if hasattr(contextlib, "chdir") else str(path))
        for read in (lc.load_model, GGUFFile):
            with pytest.raises(CheckpointError, match=expected):
                read(path)


def test_tokenizer_refusals(tmp_path: Path) -> None:
    tokens = array(["<unk>", "a", "b", "ab"], Kind.STRING)
    base = {"tokenizer.ggml.model": text("gpt2"), "tokenizer.ggml.pre": text("gpt-2"), "tokenizer.ggml.tokens": tokens}
    cases: list[tuple[dict[str, Value], str]] = [
        ({"tokenizer.ggml.model": text("bert")}, "expected 'llama' or 'gpt2', got 'bert'"),
        ({"tokenizer.ggml.pre": text("poro-chat")}, "tokenizer.ggml.pre: expected one of llama-bpe"),
        ({"tokenizer.ggml.merges": array(["a c"], Kind.STRING)}, "expected pairs of tokens, got 'a c'"),
        ({"tokenizer.ggml.token_type": array(np.array([1], np.int32), Kind.INT32)}, "expected 4 numbers"),
        ({"tokenizer.ggml.tokens": array(np.array([1], np.int32), Kind.INT32)}, "expected texts"),
    ]
    for change, message in cases:
        with pytest.raises(CheckpointError, match=message):
            tokenizer_of(GGUFFile(write_file(tmp_path / "t.gguf", base | change, {"a": np.zeros(1)})))
    without_pre = {key: value for key, value in base.items() if key != "tokenizer.ggml.pre"}
    with pytest.raises(CheckpointError, match="got None"):
        tokenizer_of(GGUFFile(write_file(tmp_path / "t.gguf", without_pre, {"a": np.zeros(1)})))
