"""GGUF models: the shared file against its golden text, round trips, shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gguf_files import IDS, llama_tensors, llama_values, write_file

import lora_c as lc
from lora_c.errors import CheckpointError
from lora_c.gguf import write_model
from lora_c.gguf.checkpoint import deinterleave, interleave
from lora_c.gguf.reader import GGUFFile
from lora_c.gguf.writer import uint32
from lora_c.text.tokenizer import Tokenizer

# --- the shared model ---------------------------------------------------------------------------------------------------


def test_shared_file_equals_the_folder_bit_for_bit(shared_data: Callable[[str], Path]) -> None:
    model = lc.load_model(shared_data("stories260K") / "stories260K.gguf")
    folder = lc.load_model(shared_data("stories260K_hf"))
    with np.load(shared_data("stories260K_hf") / "golden_logits.npz") as record:
        golden = dict(record)
    logits = model.decoder.logits(golden["input_ids"])
    np.testing.assert_array_equal(logits, folder.decoder.logits(golden["input_ids"]))
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)
    text_of = (shared_data("stories260K") / "golden200.txt").read_text(encoding="utf-8")
    assert model.generate("", max_new_tokens=200, precision="exact") == text_of
    assert text_of in (shared_data("stories260K") / "greedy200.txt").read_text(encoding="utf-8")
    assert model.eos_token_ids == {2} and model.tokenizer.bos_token_id == 1


def test_shared_file_tokenizes_as_the_folder(shared_data: Callable[[str], Path]) -> None:
    ours = lc.load_model(shared_data("stories260K") / "stories260K.gguf").tokenizer
    theirs = Tokenizer.from_folder(shared_data("stories260K_hf"))
    sample = (shared_data("tinystories") / "tinystories_sample.txt").read_text(encoding="utf-8")[:20000]
    for line in [sample, "", " ", "a", "  two  spaces ", "é 漢字 🙂", "<s>hey</s> you", "tab\tnew\n\nline"]:
        assert ours.encode(line) == theirs.encode(line), line
        assert ours.decode(ours.encode(line)) == theirs.decode(theirs.encode(line))
    assert ours.special_tokens == theirs.special_tokens


# --- round trips --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_folder_to_file_and_back(make_model: Callable[..., Path], tmp_path: Path, kind: Any) -> None:
    folder = make_model(
        rope_scaling={
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }, hidden_size=64, intermediate_size=96, attention_bias=True,
    )  # fmt: skip
    model = lc.load_model(folder)
    model._tokenizer = None  # its word tokenizer has no place in a GGUF file
    write_model(tmp_path / "model.gguf", model, kind)
    again = lc.load_model(tmp_path / "model.gguf")
    assert not again.has_tokenizer
    for name, weight in model.weights.items():
        got = again.weights[name]
        got = got if isinstance(got, np.ndarray) else got.dequantize()
        np.testing.assert_allclose(
            got.astype(np.float32), weight, atol={"F32": 0, "F16": 1e-3, "BF16": 5e-3, "Q8_0": 5e-3}[kind], err_msg=name
        )
    assert isinstance(again.weights["layers.1.q_proj"], lc.GGMLTensor) == (kind in ("F16", "Q8_0"))
    if kind == "F32":
        np.testing.assert_array_equal(again.decoder.logits(IDS), model.decoder.logits(IDS))
    write_model(tmp_path / "again.gguf", again, kind)
    first, second = (GGUFFile(tmp_path / name) for name in ("model.gguf", "again.gguf"))
    for name, info in first.tensors.items():
        assert info.type.name == second.tensors[name].type.name
        if name != "rope_freqs.weight":
            assert bytes(first._view[info.start : info.end]) == bytes(
                second._view[second.tensors[name].start :][: info.end - info.start]
            )


def test_blocks_survive_a_round_trip_and_a_folder(llama_file: Callable[..., Path], tmp_path: Path) -> None:
    path = llama_file("Q8_0")
    model = lc.load_model(path)
    write_model(tmp_path / "again.gguf", model, "Q8_0")
    first, second = GGUFFile(path), GGUFFile(tmp_path / "again.gguf")
    for name in ("blk.1.attn_q.weight", "blk.0.attn_k.weight", "blk.1.ffn_down.weight"):
        np.testing.assert_array_equal(first.read(name).blocks, second.read(name).blocks)  # type: ignore[union-attr]
    model.save(tmp_path / "folder")
    np.testing.assert_array_equal(lc.load_model(tmp_path / "folder").decoder.logits(IDS), model.decoder.logits(IDS))
    assert json.loads((tmp_path / "folder/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_interleaving_is_its_own_definition(tiny: SimpleNamespace) -> None:
    rows = np.arange(16.0).reshape(16, 1)
    halves = deinterleave(rows, 2)
    assert halves[:8, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    np.testing.assert_array_equal(interleave(halves, 2), rows)


def test_shards_are_read_together(llama_file: Callable[..., Path], tmp_path: Path) -> None:
    whole = lc.load_model(llama_file("Q4_0"))
    tensors = list(llama_tensors("Q4_0").items())
    for i, part in enumerate((tensors[:7], tensors[7:]), 1):
        values = (llama_values() if i == 1 else {}) | {"split.no": uint32(i - 1), "split.count": uint32(2)}
        write_file(tmp_path / f"m-{i:05d}-of-00002.gguf", values, dict(part))
    split = lc.load_model(tmp_path / "m-00001-of-00002.gguf")
    np.testing.assert_array_equal(split.decoder.logits(IDS), whole.decoder.logits(IDS))
    with pytest.raises(CheckpointError, match="first of 2 files"):
        write_file(tmp_path / "x.gguf", llama_values() | {"split.count": uint32(2)}, dict(tensors))
        lc.load_model(tmp_path / "x.gguf")
