"""Adapters that PEFT wrote, and what PEFT computed with them (tests/golden/make_adapter_golden.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_c._core import AdamW
from lora_c.model.model import Model
from lora_c.model.opening import load_model

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"
RECORD = np.load(GOLDEN / "golden.npz")
IDS = RECORD["ids"].astype(np.int32)
ADAPTERS = sorted(key.removesuffix(".logits") for key in RECORD.files if key.endswith(".logits"))
TRAINED = sorted(key.removesuffix(".losses") for key in RECORD.files if key.endswith(".losses"))


def base_of(name: str, **options: object) -> Model:
    config = json.loads((GOLDEN / name / "adapter_config.json").read_text())
    return load_model(GOLDEN / config["base_model_name_or_path"], **options)


def loaded(name: str, **options: object) -> Model:
    model = base_of(name)
    model.load_adapter(GOLDEN / name, **options)
    return model


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("name", ADAPTERS)
def test_logits_are_those_of_peft(name: str, trainable: bool) -> None:
    model = base_of(name)
    base = model.decoder.logits(IDS)
    model.load_adapter(GOLDEN / name, is_trainable=trainable)
    want = RECORD[f"{name}.logits"]
    assert np.abs(model.decoder.logits(IDS) - want).max() < 1e-5
    assert np.abs(base - want).max() > 1e-2
    cache = model.decoder.new_cache(len(IDS))
    rows = [model.decoder.decode(cache, part) for part in (IDS[:5], *IDS[5:, None])]
    assert np.abs(np.concatenate(rows) - want[4:]).max() < 1e-5
    model.delete_adapter()
    assert np.array_equal(model.decoder.logits(IDS), base)


@pytest.mark.parametrize("name", TRAINED)
def test_five_steps_are_those_of_peft(name: str) -> None:
    model = loaded(name)
    assert model.adapter is not None
    model.adapter.config = model.adapter.config.model_copy(update={"lora_dropout": 0.0})  # as in the record
    model.set_adapter("default")
    parameters = model.trainable_parameters()
    optimizer = AdamW(parameters, lr=1e-2, weight_decay=0.01)
    targets, weight = np.append(IDS[1:], 0).astype(np.int32), np.ones(len(IDS), np.float32)
    weight[-1] = 0
    losses = []
    for step in range(5):
        optimizer.zero_grad()
        batch = (IDS, np.array([0, len(IDS)], np.int32), targets, weight)
        losses.append(model.decoder.forward_backward(*batch, grad_scale=1 / weight.sum()) / weight.sum())
        if step == 0:
            compare_gradients(name, parameters)
        optimizer.step()
    np.testing.assert_allclose(losses, RECORD[f"{name}.losses"], rtol=2e-5)


def compare_gradients(name: str, parameters: list) -> None:
    prefix = f"{name}.grad."
    want = {plain(key.removeprefix(prefix)): RECORD[key] for key in RECORD.files if key.startswith(prefix)}
    got = {plain(parameter.name): parameter.grad for parameter in parameters}
    assert set(got) == set(want)
    for key, gradient in want.items():
        np.testing.assert_allclose(got[key], gradient, rtol=1e-3, atol=1e-5 * np.abs(gradient).max() + 1e-9, err_msg=key)


def plain(key: str) -> str:
    return key.replace(".base_layer.", ".").replace(".token_adapter.", ".")


@pytest.mark.parametrize("name", ADAPTERS)
def test_written_as_it_was_read(name: str, tmp_path: Path) -> None:
    model = loaded(name, is_trainable=False)
    model.save_adapter(tmp_path / "again")
    want, got = (load_file(folder / "adapter_model.safetensors") for folder in (GOLDEN / name, tmp_path / "again"))
    assert set(got) == set(want)
    assert all(np.array_equal(got[key], want[key]) for key in want)
    model.delete_adapter()
    model.load_adapter(tmp_path / "again")
    assert np.abs(model.decoder.logits(IDS) - RECORD[f"{name}.logits"]).max() < 1e-5


@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_model_has_the_same_logits(name: str, tmp_path: Path) -> None:
    merged = loaded(name).merge()
    assert np.abs(merged.decoder.logits(IDS) - RECORD[f"{name}.logits"]).max() < 2e-5
    merged.save(tmp_path / "merged")
    again = load_model(tmp_path / "merged")
    assert np.array_equal(again.decoder.logits(IDS), merged.decoder.logits(IDS))
    untied = name in ("save_head_tied", "save_embedding_tied", "save_both_tied")
    assert again.architecture.tied == (merged.config["tie_word_embeddings"] and not untied)


def test_a_named_adapter_lies_in_a_subfolder(tmp_path: Path) -> None:
    (tmp_path / "poet").symlink_to(GOLDEN / "rslora")
    model = base_of("rslora")
    model.load_adapter(tmp_path, name="poet")
    assert model.active_adapter == "poet"
    assert np.abs(model.decoder.logits(IDS) - RECORD["rslora.logits"]).max() < 1e-5


def test_adapters_swap_without_touching_the_base() -> None:
    model = base_of("defaults")
    base = model.decoder.logits(IDS)
    names = ["defaults", "tokens_tied", "dora_rslora", "save_head_tied", "save_embedding_tied", "layers"]
    for name in names:
        model.load_adapter(GOLDEN / name, name=name, is_trainable=name != "layers")
    assert model.adapter_names == names and model.active_adapter == "defaults"
    for name in [*names, *reversed(names)]:
        model.set_adapter(name)
        assert np.abs(model.decoder.logits(IDS) - RECORD[f"{name}.logits"]).max() < 1e-5, name
        assert bool(model.trainable_parameters()) == (name != "layers")
        model.set_adapter(None)
        assert np.array_equal(model.decoder.logits(IDS), base), name
        assert model.adapters == {} and model.trainable_parameters() == []
    model.set_adapter("layers")
    model.delete_adapter("tokens_tied")
    assert "tokens_tied" not in model.adapter_names and model.active_adapter == "layers"
