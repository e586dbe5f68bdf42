"""What a model folder holds beyond, or against, what its config.json says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_c.checkpoints.safetensors_writer import TensorEntry, write_model_files
from lora_c.errors import CheckpointError
from lora_c.model.opening import load_model
from lora_c.notices import LoraCWarning

IDS = np.arange(3, 20, dtype=np.int32)


def add(folder: Path, *names: str) -> None:
    extra = {name: np.ones(4, np.float32) for name in names}
    save_file(load_file(folder / "model.safetensors") | extra, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name",
    [
        "score.weight", "vision_tower.encoder.layers.0.self_attn.q_proj.bias", "model.vision_tower.patch.weight",
        "v_head.summary.weight", "multi_modal_projector.linear.bias", "model.layers.0.self_attn.k_scale",
        "model.layers.1.mlp.up_proj.weight.absmax", "mtp.layers.0.mlp.up_proj.weight", "something_else",
    ],
)  # fmt: skip
def test_tensors_that_nothing_reads_are_named(tiny_model_dir: Path, name: str) -> None:
    expected = load_model(tiny_model_dir).decoder.logits(IDS)
    add(tiny_model_dir, name)
    with pytest.warns(LoraCWarning, match=f"{name}: nothing of LlamaForCausalLM reads these tensors") as notices:
        model = load_model(tiny_model_dir)
    assert len(notices) == 1 and np.array_equal(model.decoder.logits(IDS), expected)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.q_norm.weight",
        "model.layers.1.mlp.experts.0.up.weight", "model.layers.2.mlp.up_proj.weight", "model.norm.bias",
        "lm_head.bias", "model.embed_positions.weight",
        "layers.0.self_attn.q_norm.weight", "model.lm_head.weight", "embed_out.weight", "model.layers.0.self_attn.sinks",
    ],
)  # fmt: skip
def test_tensors_of_another_architecture_are_refused(tiny_model_dir: Path, name: str) -> None:
    add(tiny_model_dir, name)
    with pytest.raises(CheckpointError, match=f"expected only tensors of LlamaForCausalLM, got also {name}"):
        load_model(tiny_model_dir)


def test_buffers_of_older_releases_are_nothing(tiny_model_dir: Path) -> None:
    add(tiny_model_dir, "model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
    load_model(tiny_model_dir)


def test_an_index_may_name_what_nobody_needs(tiny_model_dir: Path) -> None:
    expected = load_model(tiny_model_dir).decoder.logits(IDS)
    tensors = load_file(tiny_model_dir / "model.safetensors")
    (tiny_model_dir / "model.safetensors").unlink()
    write_model_files(tiny_model_dir, [TensorEntry.of(name, array) for name, array in tensors.items()], 20_000)
    index = tiny_model_dir / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    shard = next(iter(table["weight_map"].values()))
    table["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = shard
    index.write_text(json.dumps(table))
    assert np.array_equal(load_model(tiny_model_dir).decoder.logits(IDS), expected)
    needed = "model.norm.weight"
    holder = tiny_model_dir / table["weight_map"][needed]
    save_file({k: v for k, v in load_file(holder).items() if k != needed}, holder, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"got none for {needed} .named in the index, in {holder.name}.; download"):
        load_model(tiny_model_dir)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"hidden_size": 32, "hidden_size": 64}', r"occurs twice, 'hidden_size' \(32 and 64\)"),
        ('{"rope_scaling": {"factor": 2, "factor": 4}}', "occurs twice, 'factor'"),
        ('{"rms_norm_eps": NaN}', "NaN"),
        ('{"rope_theta": -Infinity}', "-Infinity"),
        ('{"rope_theta": 1e999}', "1e999"),
        ("[" * 100_000, "JSON"),
        ("[1]", "expected a JSON object"),
        (b"\xff\xfe", "JSON"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_what_is_not_strict_json_is_refused_by_name(tiny_model_dir: Path, name: str, text: str | bytes, message: str) -> None:
    (tiny_model_dir / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    if name != "config.json":
        (tiny_model_dir / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"{name}: .*{message}"):
        load_model(tiny_model_dir)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json", "a.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "itself", "folder", "nothing"])
def test_what_is_no_file_is_refused_at_once(tiny_model_dir: Path, name: str, kind: str) -> None:
    path = tiny_model_dir / name
    if name != "config.json" and name != "model.safetensors":
        (tiny_model_dir / "model.safetensors").unlink()
        (tiny_model_dir / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a.safetensors"}}')
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(name if kind == "itself" else "absent")
    with pytest.raises(CheckpointError, match=f"{name}: expected a "):
        load_model(tiny_model_dir)


def test_a_pipe_called_gguf_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="m.gguf: expected a regular file, got a named pipe"):
        load_model(tmp_path / "m.gguf")


def test_quantization_that_the_files_do_not_bear_out_is_said(make_model, tmp_path: Path) -> None:
    stated = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    with pytest.warns(LoraCWarning, match="says that the weights are quantized, the files hold dense ones"):
        assert not load_model(make_model(quantization_config=stated)).is_quantized
    load_model(make_model("dense"), quantize="nf4").save(tmp_path / "q")
    path = tmp_path / "q" / "config.json"
    config = json.loads(path.read_text())
    load_model(tmp_path / "q")
    other = config["quantization_config"] | {"bnb_4bit_quant_type": "fp4"}
    path.write_text(json.dumps(config | {"quantization_config": other}))
    with pytest.warns(LoraCWarning, match="bnb_4bit_quant_type says fp4, the files nf4"):
        assert load_model(tmp_path / "q").is_quantized
    config.pop("quantization_config")
    path.write_text(json.dumps(config))
    with pytest.warns(LoraCWarning, match="quantization_config is missing, the files hold weights in 4 bits"):
        assert load_model(tmp_path / "q").is_quantized
