"""Metadata of GGUF files as the configuration of a model, and every refusal."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import llama_tensors, llama_values, write_file

import lora_c as lc
from lora_c.errors import CheckpointError, ConfigError
from lora_c.gguf import write_model
from lora_c.gguf.format import Kind
from lora_c.gguf.reader import GGUFFile
from lora_c.gguf.writer import array, float32, text, uint32
from lora_c.notices import LoraCWarning


def test_rope_scaling_follows_the_rule_of_llama_cpp(llama_file: Callable[..., Path]) -> None:
    factor = {"llama__rope__scaling__factor": float32(4.0)}
    with pytest.warns(LoraCWarning, match="rope.scaling.type is none, beside a factor of 4.0; nothing is scaled"):
        unscaled = lc.load_model(llama_file(llama__rope__scaling__type=text("none"), **factor))
    assert "rope_scaling" not in unscaled.config
    assert lc.load_model(llama_file(**factor)).config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    with pytest.raises(CheckpointError, match="rope.scaling.factor: expected none with type longrope, got 4.0"):
        lc.load_model(llama_file(llama__rope__scaling__type=text("longrope"), **factor))


def test_metadata_becomes_the_folder_config(llama_file: Callable[..., Path]) -> None:
    linear = lc.load_model(llama_file(llama__rope__scaling__type=text("linear"), llama__rope__scaling__factor=float32(4.0)))
    assert linear.config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert linear.config["rms_norm_eps"] == 1e-5 and linear.config["tie_word_embeddings"] is True
    per_layer = array(np.array([2, 2], np.int32), Kind.INT32)
    assert lc.load_model(llama_file(llama__attention__head_count_kv=per_layer)).config["num_key_value_heads"] == 2


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}])
def test_a_factor_of_the_rotation_is_written_with_its_kind(
    make_model: Callable[..., Path], tmp_path: Path, scaling: dict[str, Any] | None
) -> None:
    """llama.cpp never scales where the kind is none, and takes a factor without a kind for a linear one."""
    model = lc.load_model(make_model(rope_scaling=scaling))
    model._tokenizer = None
    write_model(tmp_path / "m.gguf", model, "F32")
    file = GGUFFile(tmp_path / "m.gguf")
    assert file.get("llama.rope.scaling.type") == (scaling and scaling["rope_type"])
    assert file.get("llama.rope.scaling.factor") == (scaling and scaling["factor"])
    again = lc.load_model(tmp_path / "m.gguf").architecture.decoder_kwargs
    want = model.architecture.decoder_kwargs
    np.testing.assert_allclose(again["rope_inv_freq"], want["rope_inv_freq"], rtol=1e-5)


@pytest.mark.parametrize("theta", [500000.0, 1e30])  # the second: the first pairs turn, all others are stretched
@pytest.mark.parametrize(
    ("low", "high", "old", "factor"),
    [
        (1.0, 4.0, 8192, 8.0),
        (1.0, 4.0, 8192, 32.0),
        (2.0, 7.0, 4096, 16.0),
        (1.0, 1.01, 512, 4.0),
        (1.0, 1.3, 512, 4.0),
        (1.0, 3.70712, 100.4, 8.0),
    ],
)
def test_llama3_rule_is_found_behind_its_factors(
    tmp_path: Path, low: float, high: float, old: float, factor: float, theta: float
) -> None:
    from lora_c.families.architectures import architecture_of
    from lora_c.gguf.config import config_of, llama3_factors

    factors = llama3_factors(32, theta, factor, low, high, old)
    values = llama_values(**{"llama.rope.freq_base": float32(theta)})
    path = write_file(tmp_path / "m.gguf", values, {"rope_freqs.weight": factors} | llama_tensors("Q4_0"))
    config, _ = config_of(GGUFFile(path))
    written = dict(config["rope_scaling"])
    original = config | {
        "rope_scaling": {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": old,
        }
    }  # fmt: skip
    got, want = (architecture_of(c).decoder_kwargs["rope_inv_freq"] for c in (config, original))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    if (low, high, theta) == (1.0, 4.0, 500000.0):
        assert written["original_max_position_embeddings"] == old and written["high_freq_factor"] == high


def test_model_refusals(llama_file: Callable[..., Path], tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"general__architecture": text("bert")}, "general.architecture: expected one of llama"),
        ({"llama__expert_count": uint32(8)}, "llama.expert_count: expected it unset, got 8"),
        ({"llama__some__feature": uint32(1)}, "llama.some.feature: expected it unset"),
        ({"llama__attention__head_count": uint32(0)}, "head_count: expected a positive number"),
        ({"llama__attention__head_count": text("x")}, "head_count: expected a positive number"),
        ({"llama__attention__head_count_kv": array(np.array([1, 2], np.int32), Kind.INT32)}, "same value for all layers"),
        ({"llama__rope__dimension_count": uint32(32)}, "rope.dimension_count: expected 64"),
        ({"llama__rope__scaling__type": text("yarn2")}, "expected none, linear, yarn or longrope"),
        ({"llama__rope__freq_base": float32(float("inf"))}, "finite number"),
        ({"llama__rope__freq_base": float32(0.0)}, "rope.freq_base: expected a positive number, got 0.0"),
        ({"llama__context_length": uint32(2**31 - 1)}, "max_position_embeddings: expected a positive number"),
        ({"llama__block_count": uint32(3)}, "none for model.layers.2"),
        ({"llama__block_count": uint32(9000)}, "got 20 tensors"),
        ({"llama__block_count": uint32(2**31 - 2)}, "num_hidden_layers: expected at most"),
        ({"llama__embedding_length": uint32(128)}, "expected 32|expected shape"),
        ({"drop": ("llama.embedding_length",)}, "llama.embedding_length: expected a positive number, got None"),
        ({"drop": ("token_embd.weight",)}, "token_embd.weight"),
        ({"drop": ("blk.1.ffn_up.weight",)}, "layers.1.mlp.up_proj"),
    ]
    for changes, message in cases:
        with pytest.raises(CheckpointError, match=message):
            lc.load_model(llama_file(**changes))
    tensors = llama_tensors("Q4_0") | {"blk.0.attn_v.weight": np.zeros((128, 21))}  # rows of 84 bytes, as Q2_K has them
    path = write_file(tmp_path / "q2.gguf", llama_values(), tensors)
    path.write_bytes(path.read_bytes().replace(struct.pack("<QQI", 21, 128, 0), struct.pack("<QQI", 256, 128, 10)))
    with pytest.raises(CheckpointError, match="expected one of F32, F16, .* got Q2_K"):
        lc.load_model(path)
    with pytest.raises(ConfigError, match="type: expected one of F32"):
        write_model(tmp_path / "x.gguf", lc.load_model(llama_file()), "Q4_0")  # type: ignore[arg-type]
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="got a file of another kind"):
        lc.load_model(tmp_path / "notes.txt")
