"""Adapters as GGUF files, through the library and the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_values import write_values
from gguf_files import IDS, train, write_file

import lora_c as lc
from lora_c.adapters.gguf_format import read_adapter, write_adapter
from lora_c.errors import AdapterError, CheckpointError
from lora_c.gguf.format import Kind, Value
from lora_c.gguf.reader import GGUFFile
from lora_c.gguf.writer import array, float32, text
from lora_c.notices import LoraCWarning


def test_adapter_round_trip(llama_file: Callable[..., Path], tmp_path: Path) -> None:
    model = lc.load_model(llama_file("Q4_0"))
    model.add_adapter(
        lc.LoraConfig(
            r=4, lora_alpha=10, target_modules=["q_proj", "k_proj", "down_proj"], rank_pattern={"k_proj": 6},
            alpha_pattern={"down_proj": 3}, use_rslora=True,
        )
    )  # fmt: skip
    rng = np.random.default_rng(2)
    for parameter in model.trainable_parameters():
        write_values(parameter, rng.standard_normal(parameter.shape) * 0.1)
    assert model.adapter is not None
    arrays = model.adapter.arrays()
    for dtype, tolerance in (("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 2e-2)):
        write_adapter(tmp_path / "a.gguf", arrays, model.architecture, dtype)
        file = GGUFFile(tmp_path / "a.gguf")
        assert file.get("general.type") == "adapter" and file.get("adapter.type") == "lora"
        assert "blk.1.attn_q.weight.lora_a" in file.tensors and file.tensors["blk.0.ffn_down.weight.lora_b"].shape == (256, 4)
        again = read_adapter(tmp_path / "a.gguf", model.architecture)
        assert set(again.matrices) == set(arrays.matrices)
        for name, matrix in arrays.matrices.items():
            got = again.matrices[name]
            want = matrix.scale * matrix.B @ matrix.A
            np.testing.assert_allclose(got.scale * got.B @ got.A, want, atol=tolerance * np.abs(want).max())
            assert got.r == matrix.r


def test_adapter_through_the_model(llama_file: Callable[..., Path], tmp_path: Path) -> None:
    path = llama_file("Q4_0")
    model = lc.load_model(path)
    train(model, 2)
    want = model.decoder.logits(IDS)
    model.save_adapter(tmp_path / "a.gguf", format="gguf")
    again = lc.load_model(path)
    again.load_adapter(tmp_path / "a.gguf")
    np.testing.assert_allclose(again.decoder.logits(IDS), want, atol=1e-5)
    again.save_adapter(tmp_path / "folder")
    peft = lc.load_model(path)
    peft.load_adapter(tmp_path / "folder")
    np.testing.assert_array_equal(peft.decoder.logits(IDS), again.decoder.logits(IDS))


def test_adapter_refusals(llama_file: Callable[..., Path], tmp_path: Path) -> None:
    path = llama_file("Q4_0")
    model = lc.load_model(path)
    values = {"general.architecture": text("llama"), "general.type": text("adapter"), "adapter.type": text("lora")}
    values["adapter.lora.alpha"] = float32(8.0)
    good = {"blk.0.attn_v.weight.lora_a": np.ones((2, 256)), "blk.0.attn_v.weight.lora_b": np.ones((128, 2))}
    only_a = {"blk.0.attn_v.weight.lora_a": np.ones((2, 256))}
    cases: list[tuple[dict[str, Value], dict[str, Any], str]] = [
        ({"general.type": text("model")}, good, "general.type: expected 'adapter'"),
        ({"general.architecture": text("qwen2")}, good, "expected 'llama', got 'qwen2'"),
        ({"adapter.type": text("control_vector")}, good, "adapter.type: expected 'lora'"),
        ({"adapter.lora.alpha": float32(float("nan"))}, good, "adapter.lora.alpha: expected a positive"),
        ({"adapter.alora.invocation_tokens": array(np.array([1], np.uint32), Kind.UINT32)}, good, "invocation_tokens"),
        ({}, only_a, "expected lora_a and lora_b, got lora_a alone"),
        ({}, good | {"blk.9.attn_v.weight.lora_a": np.ones((2, 256))}, "of a projection of this model"),
        ({}, good | {"blk.0.attn_v.weight.lora_b": np.ones((64, 2))}, r"got \(2, 256\) and \(64, 2\)"),
        ({}, good | {"blk.0.attn_v.weight.lora_b": np.full((128, 2), np.nan)}, "finite numbers"),
        ({}, {}, "at least one matrix"),
    ]
    arrays = read_adapter(write_file(tmp_path / "a.gguf", values, good), model.architecture)
    assert arrays.matrices["layers.0.v_proj"].scale == 4
    for change, tensors, message in cases:
        with pytest.raises(AdapterError, match=message):
            read_adapter(write_file(tmp_path / "a.gguf", values | change, tensors), model.architecture)
    with pytest.raises(CheckpointError, match="give this file to load_adapter"):
        lc.load_model(write_file(tmp_path / "a.gguf", values, good))
    model.add_adapter(lc.LoraConfig(r=2, use_dora=True))
    assert model.adapter is not None
    with pytest.raises(AdapterError, match="DoRA"):
        write_adapter(tmp_path / "b.gguf", model.adapter.arrays(), model.architecture)


# --- the command line ---------------------------------------------------------------------------------------------------


def run(*args: object) -> str:
    """A command that must succeed."""
    from click.testing import CliRunner

    from lora_c.cli import cli

    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.filterwarnings("ignore:the data teaches the model to end:lora_c.notices.LoraCWarning")  # never trained, indeed
def test_commands(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder, data = shared_data("stories260K_hf"), tmp_path / "data.jsonl"
    data.write_text('{"text": "Once upon a time"}\n' * 4)
    with pytest.warns(LoraCWarning, match=r"5 of 36 matrices \(down_proj\) are written as F16: .* and their rows have 172$"):
        assert "gguf" in run("export", folder, tmp_path / "m.gguf", "--to", "gguf", "--dtype", "q8_0")
    blocks = lc.load_model(tmp_path / "m.gguf")
    assert blocks.weights["layers.0.q_proj"].type == "Q8_0" and blocks.weights["layers.0.down_proj"].type == "F16"
    options = ("--max-steps", 2, "--r", 2, "--output-dir", tmp_path / "out")
    run("train", "--model", tmp_path / "m.gguf", "--data", data, *options)
    run("export", tmp_path / "out", tmp_path / "a.gguf", "--to", "gguf")
    run("export", tmp_path / "a.gguf", tmp_path / "back", "--to", "peft", "--model", tmp_path / "m.gguf")
    blocks.load_adapter(tmp_path / "back")
    logits = blocks.decoder.logits(IDS)
    blocks.delete_adapter()
    blocks.load_adapter(tmp_path / "out")
    np.testing.assert_allclose(blocks.decoder.logits(IDS), logits, atol=1e-5)
    run("export", tmp_path / "m.gguf", tmp_path / "folder", "--to", "hf")
    blocks.delete_adapter()
    np.testing.assert_array_equal(lc.load_model(tmp_path / "folder").decoder.logits(IDS), blocks.decoder.logits(IDS))
    assert run("generate", "--model", tmp_path / "m.gguf", "Once upon a", "--max-new-tokens", 1).strip().endswith("time")
