"""Merges that end in a GGUF file: what is written is what the report measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from device_values import write_values

from lora_c._core import GGMLTensor
from lora_c.cli import cli
from lora_c.errors import AdapterError, CheckpointError, ConfigError
from lora_c.gguf import write_model
from lora_c.model.model import Model
from lora_c.model.opening import load_model
from lora_c.notices import LoraCWarning
from lora_c.weights.kinds import format_of

IDS = np.arange(3, 40, dtype=np.int32)


@pytest.fixture
def base_and_adapter(make_model: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A base with rows of 64 and of 44 weights, and an adapter that changes it visibly."""
    base = make_model(hidden_size=64)
    (base / "tokenizer.json").unlink()  # of a kind that llama.cpp cannot be told about
    model = load_model(base)
    model.add_adapter(r=3, lora_alpha=6, target_modules="all-linear")
    rng = np.random.default_rng(1)
    for parameter in model.trainable_parameters():
        write_values(parameter, rng.standard_normal(parameter.shape) * 0.1)
    model.save_adapter(tmp_path / "adapter")
    return base, tmp_path / "adapter"


def adapted(base: Path, adapter: Path) -> Model:
    model = load_model(base)
    model.load_adapter(adapter)
    return model


def merge(*args: object) -> str:
    result = CliRunner().invoke(cli, ["merge", *map(str, args)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(("dtype", "stored"), [("q8_0", "Q8_0"), ("float16", "F16"), ("bfloat16", "bfloat16"), (None, "F16")])
def test_command_writes_one_file_and_its_report(
    base_and_adapter: tuple[Path, Path], tmp_path: Path, dtype: str | None, stored: str
) -> None:
    base, adapter = base_and_adapter
    out = tmp_path / "merged.gguf"
    said = pytest.warns(LoraCWarning, match=r"\(down_proj\) are written as F16") if dtype == "q8_0" else nullcontext()
    with said:
        text = merge("--model", base, "--adapter", adapter, "--output-dir", out, *(("--dtype", dtype) if dtype else ()))
    report = json.loads((tmp_path / "merged.merge_report.json").read_text())
    assert (tmp_path / "merged.merge_report.txt").read_text() in text
    assert report["dtype"] == (dtype or "float16") and {"q8_0", "nf4", "float16"} <= set(report["targets"])
    written = load_model(out)
    assert format_of(written.weights["layers.0.q_proj"]) == stored
    assert format_of(written.weights["layers.0.down_proj"]) == ("F16" if stored == "Q8_0" else stored)
    expected = adapted(base, adapter).merge(dtype=report["dtype"]).decoder.logits(IDS)
    np.testing.assert_allclose(written.decoder.logits(IDS), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def q8_0(weights: np.ndarray) -> np.ndarray:
    """The bytes of Q8_0 by the definition of the format: d = max |x| / 127, codes rounded half away from zero."""
    x = weights.reshape(-1, 32).astype(np.float32)
    scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    codes = x * (np.float32(1) / scale)
    blocks = np.zeros(len(x), [("d", "<f2"), ("codes", "i1", 32)])
    blocks["d"] = scale[:, 0]
    blocks["codes"] = np.sign(codes) * np.floor(np.abs(codes) + np.float32(0.5))
    return blocks.view(np.uint8)


def test_merged_blocks_are_those_of_the_definition(base_and_adapter: tuple[Path, Path]) -> None:
    model = adapted(*base_and_adapter)
    exact, merged = model.merge(dtype="float32"), model.merge(dtype="q8_0")
    for name in ("layers.1.q_proj", "embed_tokens", "lm_head"):
        tensor = merged.weights[name]
        assert isinstance(tensor, GGMLTensor) and tensor.type == "Q8_0"
        np.testing.assert_array_equal(tensor.blocks.reshape(-1), q8_0(exact.weights[name]))


def test_blocks_without_an_adapter_are_kept(base_and_adapter: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = base_and_adapter
    with pytest.warns(LoraCWarning, match=r"\(down_proj\) are written as F16"):
        write_model(tmp_path / "base.gguf", load_model(base), "Q8_0")
    model = load_model(tmp_path / "base.gguf")
    model.add_adapter(r=2, target_modules=["q_proj"])
    merge_of = model.merge(dtype="q8_0")
    kept, quantized = "layers.0.k_proj", "layers.0.q_proj"
    assert merge_of.weights[kept] is model.weights[kept] and merge_of.weights[quantized] is not model.weights[quantized]


def test_what_a_format_has_no_place_for_is_refused(
    base_and_adapter: tuple[Path, Path], tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    base, adapter = base_and_adapter
    (tmp_path / "folder.gguf").mkdir()
    for out, more, match in [
        ("m.gguf", ("--dtype", "nf4"), "dtype: expected float32, float16, bfloat16 or q8_0"),
        ("m", ("--dtype", "q8_0"), "give --to gguf"),
        ("m.gguf", ("--to", "hf", "--dtype", "q8_0"), "give --to gguf"),
        ("folder.gguf", (), "expected the name of a file"),
    ]:
        with pytest.raises(ConfigError, match=match):
            merge("--model", base, "--adapter", adapter, "--output-dir", tmp_path / out, *more)
        assert not (tmp_path / "m").exists() and not (tmp_path / "m.gguf").is_file()
    words = load_model(make_model("words"))
    words.add_adapter(r=2)
    words.save_adapter(tmp_path / "of words")
    with pytest.raises(CheckpointError, match="expected a BPE tokenizer"):
        merge("--model", words.source, "--adapter", tmp_path / "of words", "--output-dir", tmp_path / "m.gguf")
    model = adapted(base, adapter)
    write_values(model.adapters["layers.0.q_proj"].B, np.inf, where=(0, 0))
    with pytest.raises(AdapterError, match=r"q_proj: expected finite numbers, got (inf|nan)"):
        model.merge(dtype="q8_0")
    write_values(model.adapters["layers.0.q_proj"].B, 1e9)
    with pytest.raises(AdapterError, match=r"q_proj: .*use bfloat16 or float32"):
        model.merge(dtype="q8_0")
