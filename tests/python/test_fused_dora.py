"""DoRA on modules that hold several matrices (Phi-3's qkv_proj and gate_up_proj, GPT-2's c_attn) against PEFT."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from device_values import write_values
from safetensors.numpy import save_file

from lora_c.model.model import Model
from lora_c.model.opening import load_model

GOLDEN = Path(__file__).parents[1] / "golden"
MODULES = {"phi3": ["qkv_proj", "gate_up_proj"], "gpt2": ["c_attn"]}


def load(name: str, folder: Path) -> tuple[Model, np.ndarray, dict[str, np.ndarray]]:
    """The golden model with its adapter, the token ids, and what PEFT says."""
    folder.mkdir()
    with np.load(GOLDEN / "families" / f"{name}.npz") as file:
        (folder / "config.json").write_bytes(file["config"].tobytes())
        tensors = {key[7:]: file[key].view(ml_dtypes.bfloat16) for key in file if key.startswith("tensor.")}
        ids = file["ids"]
    save_file({key: array.astype(np.float32) for key, array in tensors.items()}, folder / "model.safetensors")
    with np.load(GOLDEN / "fused_dora.npz") as file:
        record = {key.removeprefix(name + "."): file[key] for key in file if key.startswith(name + ".")}
    model = load_model(folder)
    model.add_adapter(r=4, lora_alpha=8, target_modules=MODULES[name], use_dora=True)
    for parameter in model.trainable_parameters():
        write_values(parameter, record["adapter." + parameter.name])
    return model, ids, record


@pytest.mark.parametrize("name", MODULES)
def test_logits_and_gradients(name: str, tmp_path: Path) -> None:
    model, ids, record = load(name, tmp_path / "model")
    assert np.abs(model.decoder.logits(ids) - record["logits"]).max() < 1e-4
    n = len(ids) - 1
    weight = np.ones(len(ids), np.float32)
    weight[-1] = 0
    cu = np.array([0, len(ids)], np.int32)
    loss = model.decoder.forward_backward(ids, cu, np.roll(ids, -1), weight, grad_scale=1 / n) / n
    assert abs(loss - record["loss"]) < 1e-4
    parameters = model.trainable_parameters()
    assert {p.name for p in parameters} == {key[5:] for key in record if key.startswith("grad.")}
    for parameter in parameters:
        expected = record["grad." + parameter.name]
        assert np.linalg.norm(parameter.grad - expected) < 1e-3 * np.linalg.norm(expected), parameter.name


@pytest.mark.parametrize("name", MODULES)
def test_merge_and_files(name: str, tmp_path: Path) -> None:
    model, ids, record = load(name, tmp_path / "model")
    assert np.abs(model.merge().decoder.logits(ids) - record["logits"]).max() < 1e-4
    model.save_adapter(tmp_path / "adapter")
    again = load_model(tmp_path / "model")
    again.load_adapter(tmp_path / "adapter")
    assert np.array_equal(again.decoder.logits(ids), model.decoder.logits(ids))
