"""The device "meta": models that have shapes and no values forecast what the model itself takes, and compute nothing."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_c as lc
from lora_c import _core
from lora_c.errors import ConfigError
from lora_c.families.shapes import SHAPES
from lora_c.model.meta_model import meta_model_of_shape, open_meta
from lora_c.training.memory import forecast_model
from lora_c.weights.quantization import Quantization

sys.path.insert(0, str(Path(__file__).parents[1]))

from bits.cases import family_folders

NF4: dict[str, Any] = {"quantize": "nf4", "block_size": 32}
# Sums over the tensors of the published checkpoints; of GPT-3 arXiv:2005.14165, table D.1, in millions.
PUBLISHED = {
    "gpt2": 124_439_808, "gpt2-xl": 1_557_611_200, "llama-7b": 6_738_415_616, "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616, "llama-65b": 65_285_660_672, "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496, "llama-3.2-1b": 1_235_814_400, "llama-3.2-3b": 3_212_749_824,
    "qwen3-0.6b": 596_049_920, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360, "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264, "smollm2-135m": 134_515_008, "smollm2-360m": 361_821_120, "smollm2-1.7b": 1_711_376_384,
    "gemma-2-2b": 2_614_341_888, "gemma-2-9b": 9_241_705_984, "gemma-2-27b": 27_227_128_320, "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
}  # fmt: skip
GPT3_MILLIONS = 174_600

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"r": 3},
    "query_value": {"r": 3, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1},
    "patterns": {"r": 2, "rank_pattern": {"q_proj": 5}, "layers_to_transform": [1]},
    "dora": {"r": 2, "use_dora": True},
    "pissa": {"r": 2, "init_lora_weights": "pissa"},
    "whole": {"r": 2, "modules_to_save": ["lm_head", "norm"]},
    "tokens": {"r": 2, "trainable_token_indices": [3, 5]},
    "globals": {"r": 2, "target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "ia3": {"peft_type": "IA3", "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "bottleneck": {"peft_type": "BOTTLENECK"},
    "prompt": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
    "prefix": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3},
    "encoder": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3, "prefix_projection": True},
}


def trained(model: lc.Model) -> list[tuple[str, tuple[int, ...]]]:
    return [(p.name, tuple(p.shape)) for p in model.trainable_parameters()]


def assert_same_forecast(real: lc.Model, meta: lc.Model, n_tokens: int = 40) -> None:
    gc.collect()  # what lives of the base is all that the library has
    assert trained(meta) == trained(real) and meta.num_parameters() == real.num_parameters()
    for recompute in ("none", "attention", "layer"):
        for dtype in ("float32", "bfloat16", "int8"):
            for model in (real, meta):
                model.decoder.recompute, model.decoder.activation_dtype = recompute, dtype
            expected, found = forecast_model(real, n_tokens, n_segments=2), forecast_model(meta, n_tokens, n_segments=2)
            assert found == expected


LOADS = {"dense": {}, "bfloat16": {"dtype": "bfloat16"}, "nf4": NF4, "single": {"quantize": "nf4", "double_quant": False}}


@pytest.mark.parametrize("load", LOADS.values(), ids=list(LOADS))
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_takes_what_it_takes_with_values(
    tiny_model_dir: Path, name: str, load: dict[str, Any], on_cpu: None
) -> None:
    real, meta = lc.load_model(tiny_model_dir, progress=False, **load), open_meta(tiny_model_dir, **load)
    real.add_adapter(**ADAPTERS[name])
    meta.add_adapter(**ADAPTERS[name])
    assert_same_forecast(real, meta)


@pytest.mark.parametrize("trainable", ["full", "head"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_that_is_trained_itself(make_model: Callable[..., Path], trainable: Any, tied: bool, on_cpu: None) -> None:
    folder = make_model(tie_word_embeddings=tied)
    real = lc.load_model(folder, progress=False, trainable=trainable)
    assert_same_forecast(real, open_meta(folder, trainable=trainable))


def test_a_prequantized_folder(tiny_model_dir: Path, tmp_path: Path, on_cpu: None) -> None:
    lc.load_model(tiny_model_dir, progress=False, **NF4).save(tmp_path / "nf4")
    for load in ({}, {"quantize": "nf4"}, {"dtype": "bfloat16"}):
        real, meta = lc.load_model(tmp_path / "nf4", progress=False, **load), open_meta(tmp_path / "nf4", **load)
        real.add_adapter(r=2), meta.add_adapter(r=2)
        assert_same_forecast(real, meta)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", None])
def test_a_gguf_file(llama_file: Callable[..., Path], kind: str | None, on_cpu: None) -> None:
    path = llama_file(kind)
    for load in ({}, NF4, {"dtype": "bfloat16"}):
        real, meta = lc.load_model(path, progress=False, **load), open_meta(path, **load)
        real.add_adapter(r=2), meta.add_adapter(r=2)
        assert_same_forecast(real, meta)


def test_a_classifier(tiny_model_dir: Path, on_cpu: None) -> None:
    task: dict[str, Any] = {"task_type": "SEQ_CLS", "num_labels": 3}
    real, meta = lc.load_model(tiny_model_dir, progress=False, **task), open_meta(tiny_model_dir, **task)
    real.add_adapter(r=2), meta.add_adapter(r=2)
    assert_same_forecast(real, meta)


def test_a_wrong_folder_is_refused_as_it_is_by_load_model(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    config = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(config.replace('"hidden_size": 32', '"hidden_size": 64'), encoding="utf-8")
    said = []
    for opened in (lambda: open_meta(folder), lambda: lc.load_model(folder, progress=False)):
        with pytest.raises(lc.LoraCError) as caught:
            opened()
        said.append(str(caught.value))
    assert said[0] == said[1] and "expected shape" in said[0]


def test_shapes_have_the_published_numbers_of_parameters() -> None:
    for name, count in PUBLISHED.items():
        assert meta_model_of_shape(name, SHAPES[name].config, None).num_parameters() == count, name
    gpt3 = meta_model_of_shape("gpt3-175b", SHAPES["gpt3-175b"].config, None)
    assert round(gpt3.num_parameters() / 1e8) == GPT3_MILLIONS // 100
    assert all(shape.source for shape in SHAPES.values())


def test_what_is_larger_than_every_memory_takes_none() -> None:
    before = _core.memory_report()["total"]["live"]
    model = meta_model_of_shape("gpt3-175b", SHAPES["gpt3-175b"].config, Quantization(), "none")
    full = meta_model_of_shape("gpt3-175b", SHAPES["gpt3-175b"].config, None, "full")
    assert forecast_model(full, 2048).total > 2 << 40
    assert _core.memory_report()["total"]["live"] - before < 1 << 20
    live = _core.memory_report("meta")["total"]["live"]
    del model, full
    assert _core.memory_report("meta")["total"]["live"] < live - (1 << 40)


def test_nothing_is_computed_there() -> None:
    model = meta_model_of_shape("gpt2", SHAPES["gpt2"].config, None)
    model.add_adapter(r=2, target_modules=["c_attn"])
    ids, ends = np.zeros(4, np.int32), np.array([0, 4], np.int32)
    with pytest.raises(MemoryError):
        model.decoder.forward_backward(ids, ends, ids, np.ones(4, np.float32))
    with pytest.raises(MemoryError):
        _core.AdamW(model.trainable_parameters(), lr=1e-3)
    with pytest.raises(NotImplementedError, match="meta"):
        model.trainable_parameters()[0].read()
    weight = _core.meta_weight(8, 32, "4bit")
    assert weight.shape == (8, 32) and weight.device == "meta" and repr(weight) == "DeviceWeight(8 x 32 4bit, device='meta')"
    with pytest.raises(NotImplementedError, match="quantize_4bit"):
        lc.NF4Tensor.quantize(np.ones((8, 64), np.float32), device="meta")


def test_it_is_no_device_of_models(tiny_model_dir: Path) -> None:
    assert "meta" not in [device.name for device in lc.devices()]
    for name in ("meta", "meta:8.0"):
        with pytest.raises(ConfigError, match="expected a name of devices"):
            lc.load_model(tiny_model_dir, device=name)
    for name in ("meta:", "meta:8", "meta:8.", "meta:.5", "meta:8.0x", "meta:1000.0", "metal"):
        with pytest.raises(ValueError, match="device: expected one of cpu"):
            _core.memory_info(name)


def test_a_gpu_is_forecast_by_its_compute_capability() -> None:
    found = {}
    for name in ("meta", "meta:7.5", "meta:8.6", "meta:9.0"):
        model = meta_model_of_shape("gemma-3-1b", SHAPES["gemma-3-1b"].config, Quantization(), device=name)
        model.add_adapter(r=8)
        model.decoder.precision = "fast"
        found[name] = forecast_model(model, 1024, n_segments=2)
        model.decoder.precision = "exact"
        assert forecast_model(model, 1024, n_segments=2).activations == found["meta"].activations  # float32 everywhere
    turing, ampere, hopper = found["meta:7.5"], found["meta:8.6"], found["meta:9.0"]
    assert ampere.activations < turing.activations == found["meta"].activations  # kept in bfloat16
    assert hopper.scratch > ampere.scratch  # heads of 256 find room in shared memory, and are packed
    assert turing.scratch > (32 << 20) + found["meta"].scratch  # the workspace of products


@pytest.mark.parametrize(
    ("rows", "cols", "kind", "options", "count"),
    [
        (8, 32, "float32", {}, 1024),
        (8, 32, "bfloat16", {}, 512),
        (8, 64, "4bit", {}, 256 + 8 + 4),
        (8, 64, "4bit", {"double_quant": False}, 256 + 32),
        (8, 64, "4bit", {"block_size": 32, "double_quant": False}, 256 + 64),
        (8, 64, "Q8_0", {}, 8 * 2 * 34),
        (8, 64, "Q4_0", {}, 8 * 2 * 18),
    ],
)
def test_the_bytes_of_a_form(rows: int, cols: int, kind: str, options: dict[str, Any], count: int) -> None:
    before = _core.memory_report("meta")["base weights"]["live"]
    weight = _core.meta_weight(rows, cols, kind, **options)
    assert _core.memory_report("meta")["base weights"]["live"] - before == count
    del weight
    assert _core.memory_report("meta")["base weights"]["live"] == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, 4, "float32"), "rows, cols: expected sizes"),
        ((1 << 40, 1 << 40, "float32"), "rows, cols: expected sizes"),
        ((4, 4, "int7"), "kind: expected"),
        ((4, 33, "Q8_0"), "cols: expected a multiple of 32"),
        ((4, 64, "4bit", 0), "block_size: expected"),
    ],
)
def test_what_is_no_matrix_is_refused(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _core.meta_weight(*arguments)


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_rows_of_one_tensor_that_begin_within_a_block_of_scales(tmp_path: Path, family: str, on_cpu: None) -> None:
    """As in GPT-2 XL with double quantization: the decoder reads float32 beside the codes, and that counts."""
    folder = dict(family_folders(tmp_path))[f"{family}/float32"]
    found = {}
    for name, load in {"nested": NF4, "single": NF4 | {"double_quant": False}}.items():
        real, meta = lc.load_model(folder, progress=False, **load), open_meta(folder, **load)
        real.add_adapter(r=2), meta.add_adapter(r=2)
        assert_same_forecast(real, meta)
        found[name] = real.parts.dequantized_bytes
        assert found[name] == 4 * sum(math.prod(real.weights[tensor].shape) for tensor in meta.dequantized)
        del real, meta
    assert found["single"] == 0 < found["nested"]


def test_gpt2_xl_is_planned_in_4_bits() -> None:
    nested, single = (
        meta_model_of_shape("gpt2-xl", SHAPES["gpt2-xl"].config, Quantization(double_quant=double)) for double in (True, False)
    )
    count = 48 * 4800 * 1600  # of c_attn, in which 1,600 x 1,600 weights are no whole number of 64 x 256
    assert nested.base_bytes() > 4 * count and nested.base_bytes() - single.base_bytes() < 4 * count
