"""Prompt tuning and prefix tuning against PEFT in every family (tests/golden/make_prompt_golden.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from device_values import write_values
from safetensors.numpy import load_file
from test_families import CASES, adapt, folder, from_bits, golden, relative

import lora_c as lc
from lora_c.configs import PrefixTuningConfig, PromptTuningConfig
from lora_c.model.model import Model

HERE = Path(__file__).parents[1] / "golden"
PROMPTS = HERE / "prompts"
FAMILIES, STACKED, FOLDERS = (np.load(PROMPTS / f"{name}.npz") for name in ("families", "stacked", "golden"))
KINDS = ("prompt", "prefix")
N = 6
TIED_IDS = np.array([(7 * i + 3) % 48 for i in range(18)], np.int32)
CLOSE = 1e-4


def with_values(model: Model, kind: str, values: np.ndarray, name: str = "virtual") -> Model:
    """The model with an adapter of this kind in use."""
    config = {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}[kind]
    model.add_adapter(config(num_virtual_tokens=N), name)
    assert model.adapter is not None
    (parameter,) = model.adapter.parameters()
    assert parameter.shape == values.shape
    write_values(parameter, values)
    return model


def loss_of(model: Model, ids: np.ndarray) -> float:
    """The mean loss, with gradients of it."""
    for parameter in model.trainable_parameters():
        parameter.zero_grad()
    n = len(ids) - 1
    weight = np.append(np.ones(n, np.float32), np.float32(0))
    cu = np.array([0, len(ids)], np.int32)
    return model.decoder.forward_backward(ids, cu, np.roll(ids, -1), weight, grad_scale=1 / n) / n


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_logits_loss_and_gradients(name: str, kind: str, tmp_path: Path) -> None:
    record, key = golden(name), f"{name}.{kind}"
    model = lc.load_model(folder(record, tmp_path / "model"))
    ids = record["ids"]
    with_values(model, kind, from_bits(FAMILIES[f"{key}.values"]))
    want = FAMILIES[f"{key}.logits"]
    got = model.decoder.logits(ids)
    assert got.shape == (len(ids), 64) and np.abs(got[: len(want)] - want).max() < CLOSE
    assert np.abs(got[: len(want)] - record["logits"][: len(want)]).max() > 100 * CLOSE
    (parameter,) = model.trainable_parameters()
    for recompute in ("none", "attention", "layer"):
        model.decoder.recompute = recompute
        assert loss_of(model, ids) == pytest.approx(float(FAMILIES[f"{key}.loss"]), rel=1e-5)
        assert relative(parameter.grad, FAMILIES[f"{key}.grad"]) < 1e-4
    check_packed_and_cached(model, ids, got)


def check_packed_and_cached(model: Model, ids: np.ndarray, whole: np.ndarray) -> None:
    """Each sequence of a batch has the tokens before it; in a cache they stand once, and do not count."""
    short = ids[:11]
    both = model.decoder.logits(np.concatenate([short, ids]), np.array([0, 11, 11 + len(ids)], np.int32))
    alone = model.decoder.logits(short)
    assert np.abs(both[:11] - alone).max() < 1e-5 and np.abs(both[11:] - whole).max() < 1e-5
    cache = model.decoder.new_cache(N + 11)
    rows = [model.decoder.decode(cache, part)[0] for part in (short[:3], short[3:4], short[4:])]
    assert cache.length() == 11 and np.abs(np.array(rows) - alone[[2, 3, 10]]).max() < 5e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ("llama", "qwen3", "gemma3", "gpt2"))
def test_beside_a_lora_adapter(name: str, kind: str, tmp_path: Path) -> None:
    record, key = golden(name), f"{name}.{kind}"
    model = lc.load_model(folder(record, tmp_path / "model"))
    adapt(model, record)
    with_values(model, kind, from_bits(STACKED[f"{key}.values"]))
    model.set_adapter(["default", "virtual"])
    want = STACKED[f"{key}.logits"]
    assert np.abs(model.decoder.logits(record["ids"])[: len(want)] - want).max() < CLOSE
    for recompute in ("none", "attention", "layer"):
        model.decoder.recompute = recompute
        assert loss_of(model, record["ids"]) == pytest.approx(float(STACKED[f"{key}.loss"]), rel=1e-5)
        compare_stacked_gradients(model, key)


def compare_stacked_gradients(model: Model, key: str) -> None:
    compared = 0
    for parameter in model.trainable_parameters():
        name = f"{key}.grad" if parameter.name == "prompt_embeddings" else f"{key}.grad.{parameter.name}"
        if name in STACKED.files:
            assert relative(parameter.grad, STACKED[name]) < 1e-4, name
            compared += 1
    assert compared == sum(file.startswith(f"{key}.grad") for file in STACKED.files) >= 9


# -- folders of PEFT --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("name", ("prompt", "prefix", "projection"))
def test_folders_of_peft(name: str, trainable: bool, tmp_path: Path) -> None:
    model = lc.load_model(HERE / "adapters" / "tied")
    base = model.decoder.logits(TIED_IDS)
    model.load_adapter(PROMPTS / name, is_trainable=trainable)
    assert np.abs(model.decoder.logits(TIED_IDS) - FOLDERS[f"{name}.logits"]).max() < 1e-5
    assert len(model.trainable_parameters()) == trainable
    model.save_adapter(tmp_path / "again")
    want, got = (load_file(path / "adapter_model.safetensors") for path in (PROMPTS / name, tmp_path / "again"))
    assert set(got) == set(want) == {"prompt_embeddings"}
    assert np.array_equal(got["prompt_embeddings"], want["prompt_embeddings"])
    compare_files(PROMPTS / name, tmp_path / "again")
    model.delete_adapter()
    assert np.array_equal(model.decoder.logits(TIED_IDS), base)


def compare_files(peft: Path, own: Path) -> None:
    """PEFT's fields have PEFT's values; what it says of itself and of the base's place is left out."""
    want, got = (json.loads((path / "adapter_config.json").read_text()) for path in (peft, own))
    skipped = {"base_model_name_or_path", "peft_version"}
    if want.get("prefix_projection"):  # the prefix is an adapter without what made it
        skipped |= {"prefix_projection", "encoder_hidden_size"}
    for key, value in want.items():
        assert key in skipped or got.get(key) == value, key


def test_a_projection_is_trained_through_and_saved_as_what_it_makes(tmp_path: Path) -> None:
    model = lc.load_model(HERE / "adapters" / "tied")
    model.add_adapter(PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7))
    parameters = {p.name.removeprefix("prompt_encoder."): p for p in model.trainable_parameters()}
    assert {f"projection.param.{name}" for name in parameters} == {key for key in FOLDERS.files if ".param." in key}
    for name, parameter in parameters.items():
        write_values(parameter, FOLDERS[f"projection.param.{name}"])
    assert np.abs(model.decoder.logits(TIED_IDS) - FOLDERS["projection.logits"]).max() < 1e-5
    for _ in range(2):  # nothing of a pass stays behind for the next one
        loss_of(model, TIED_IDS)
        for name, parameter in parameters.items():
            assert relative(parameter.grad, FOLDERS[f"projection.grad.{name}"]) < 1e-4, name
    model.save_adapter(tmp_path / "own")
    want = load_file(PROMPTS / "projection" / "adapter_model.safetensors")["prompt_embeddings"]
    got = load_file(tmp_path / "own" / "adapter_model.safetensors")["prompt_embeddings"]
    np.testing.assert_allclose(got, want, atol=1e-6)
    written = json.loads((tmp_path / "own" / "adapter_config.json").read_text())
    assert written["prefix_projection"] is True and written["encoder_hidden_size"] == 7


def test_a_prompt_begins_as_a_text() -> None:
    model = lc.load_model("demo", progress=False)
    text = "Answer in one short sentence."
    config = PromptTuningConfig(num_virtual_tokens=14, prompt_tuning_init="TEXT", prompt_tuning_init_text=text)
    model.add_adapter(config)
    (parameter,) = model.trainable_parameters()
    assert np.array_equal(parameter.data, FOLDERS["text"])
