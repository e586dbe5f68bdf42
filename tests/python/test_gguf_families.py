"""GGUF files of every family: names, order and metadata as llama.cpp's own converter writes them (tests/golden)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_values import write_values
from safetensors.numpy import load_file, save_file

import lora_c as lc
from lora_c.errors import CheckpointError
from lora_c.families.architectures import architecture_of
from lora_c.gguf import write_model
from lora_c.gguf.families import FAMILIES, family_of_arch
from lora_c.gguf.reader import GGUFFile
from lora_c.notices import LoraCWarning

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
RECORD: dict[str, Any] = json.loads((GOLDEN / "gguf_families.json").read_text(encoding="utf-8"))
_spec = importlib.util.spec_from_file_location("make_gguf_families", GOLDEN / "make_gguf_families.py")
assert _spec is not None and _spec.loader is not None
golden_script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden_script)
IDS = np.arange(3, 30, dtype=np.int32)
# Keys that one side writes and that say what the other side's default is.
IMPLIED = ("attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base", "vocab_size",
           "rope.scaling.original_context_length", "attention.sliding_window", "rope.freq_base_swa")  # fmt: skip


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[[str], Path]:
    """The model folder that the converter was given."""

    def make(name: str) -> Path:
        config = RECORD[name]["config"]
        tensors = {s.file_name: golden_script.weight_of(s.file_name, s.file_shape) for s in architecture_of(config).weights()}
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder/config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file(tensors, tmp_path / "folder/model.safetensors")
        return tmp_path / "folder"

    return make


@pytest.mark.parametrize("name", list(RECORD))
def test_files_are_those_of_the_converter(name: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    record = RECORD[name]
    folder = lc.load_model(folder_of(name), progress=False)
    write_model(tmp_path / "ours.gguf", folder, "F32")
    file = GGUFFile(tmp_path / "ours.gguf")
    assert file.get("general.architecture") == record["architecture"]
    assert set(file.tensors) == set(record["tensors"])
    for tensor, (*shape, first, second) in ((t, (*v[0], *v[1:])) for t, v in record["tensors"].items()):
        values = np.asarray(file.read(tensor))
        assert list(values.shape) == shape, tensor
        np.testing.assert_allclose(golden_script.sums_of(values), [first, second], rtol=1e-6, atol=1e-4, err_msg=tensor)
    for key, value in record["metadata"].items():
        if file.get(key) is None and key.partition(".")[2] in IMPLIED:
            continue
        assert file.get(key) == pytest.approx(value, rel=1e-6) if isinstance(value, float) else file.get(key) == value, key
    again = lc.load_model(tmp_path / "ours.gguf", progress=False)
    np.testing.assert_allclose(again.decoder.logits(IDS), folder.decoder.logits(IDS), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["phi3", "gemma2", "qwen3", "gpt2"])
def test_families_train_on_blocks(name: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Fused matrices give their rows, norms their offset: gradients equal those on the dequantized weights."""
    said = pytest.warns(LoraCWarning, match=r"2 of 1\d matrices \(down_proj\) are written as F16")
    with nullcontext() if name == "gpt2" else said:
        write_model(tmp_path / "q8.gguf", lc.load_model(folder_of(name), progress=False), "Q8_0")
    results = []
    for dtype in (None, "float32"):
        model = lc.load_model(tmp_path / "q8.gguf", dtype=dtype, progress=False)  # type: ignore[arg-type]
        model.add_adapter(lc.LoraConfig(r=2, seed=1))
        parameters = model.trainable_parameters()
        rng = np.random.default_rng(0)
        for parameter in parameters:
            write_values(parameter, rng.standard_normal(parameter.shape) * 0.05)
        cu, weight = np.array([0, len(IDS)], np.int32), np.ones(len(IDS), np.float32)
        loss = model.decoder.forward_backward(IDS, cu, np.roll(IDS, -1), weight)
        results.append((loss, [np.array(parameter.grad) for parameter in parameters]))
    assert results[0][0] == results[1][0]
    for got, want in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_array_equal(got, want)


def test_every_family_row_has_a_golden_file() -> None:
    for record in RECORD.values():
        family_of_arch(record["architecture"], "golden")
    assert {record["architecture"] for record in RECORD.values()} == {family.arch for family in FAMILIES}


@pytest.mark.parametrize(
    ("name", "changes", "what"),
    [
        ("gemma2", {"query_pre_attn_scalar": 24}, "attention_scale"),
        ("gemma3", {"layer_types": ["sliding_attention", "full_attention"] * 3 + ["full_attention"]}, "sliding_window"),
        ("olmo2", {"hidden_act": "gelu_pytorch_tanh"}, "activation"),
    ],
)
def test_what_the_format_cannot_say_is_refused(
    folder_of: Callable[[str], Path], tmp_path: Path, name: str, changes: dict[str, Any], what: str
) -> None:
    """Else the file would hold another model."""
    folder = folder_of(name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    model = lc.load_model(folder, progress=False)
    with pytest.raises(CheckpointError, match=f"GGUF: ({what}): expected .*save the model as a folder"):
        write_model(tmp_path / "m.gguf", model, "F32")
    assert not (tmp_path / "m.gguf").exists()


def test_gpt2_as_a_folder_again_and_its_adapters(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """A folder stores its matrices as (in, out), the file as (out, in); config.json has GPT-2's own names."""
    source = folder_of("gpt2")
    original = lc.load_model(source, progress=False)
    write_model(tmp_path / "m.gguf", original, "F32")
    model = lc.load_model(tmp_path / "m.gguf", progress=False)
    model.save(tmp_path / "again")
    config = json.loads((tmp_path / "again/config.json").read_text())
    assert (config["n_embd"], config["n_layer"], config["n_inner"], config["layer_norm_epsilon"]) == (32, 2, 128, 1e-5)
    assert not {"hidden_size", "rope_theta", "head_dim", "num_key_value_heads"} & set(config)
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "again/model.safetensors")
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    model.add_adapter(lc.LoraConfig(r=3, target_modules="all-linear"))
    rng = np.random.default_rng(0)
    for parameter in model.trainable_parameters():
        write_values(parameter, rng.standard_normal(parameter.shape) * 0.1)
    model.save_adapter(tmp_path / "a.gguf", format="gguf")
    original.load_adapter(tmp_path / "a.gguf")
    np.testing.assert_allclose(original.decoder.logits(IDS), model.decoder.logits(IDS), rtol=1e-5, atol=1e-4)
