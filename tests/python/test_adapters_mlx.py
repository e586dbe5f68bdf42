"""Adapters of mlx-lm, and what MLX computed with them (tests/golden/make_mlx_golden.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_c.errors import AdapterError
from lora_c.model.opening import load_model

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"
RECORD = np.load(GOLDEN / "mlx.npz")
IDS = np.load(GOLDEN / "golden.npz")["ids"].astype(np.int32)
ADAPTERS = {"mlx_lora": "biased", "mlx_dora": "tied"}


@pytest.mark.parametrize(("name", "base"), ADAPTERS.items())
def test_logits_are_those_of_mlx(name: str, base: str, tmp_path: Path) -> None:
    model = load_model(GOLDEN / base)
    model.load_adapter(GOLDEN / name)
    assert np.abs(model.decoder.logits(IDS) - RECORD[f"{name}.logits"]).max() < 2e-5
    model.save_adapter(tmp_path / "peft")
    again = load_model(GOLDEN / base)
    again.load_adapter(tmp_path / "peft")
    assert np.array_equal(again.decoder.logits(IDS), model.decoder.logits(IDS))


@pytest.mark.parametrize(("name", "base"), ADAPTERS.items())
def test_written_as_it_was_read(name: str, base: str, tmp_path: Path) -> None:
    model = load_model(GOLDEN / base)
    model.load_adapter(GOLDEN / name)
    model.save_adapter(tmp_path / "again", format="mlx")
    want, got = (load_file(folder / "adapters.safetensors") for folder in (GOLDEN / name, tmp_path / "again"))
    assert set(want) == set(got) and all(np.array_equal(got[key], want[key]) for key in want)
    old, new = (json.loads((folder / "adapter_config.json").read_text()) for folder in (GOLDEN / name, tmp_path / "again"))
    assert new["fine_tune_type"] == old["fine_tune_type"]
    assert new["num_layers"] == (3 if old["num_layers"] == -1 else old["num_layers"])
    assert new["lora_parameters"] | {"keys": None} == old["lora_parameters"] | {"keys": None}
    assert sorted(old["lora_parameters"]["keys"]) == new["lora_parameters"]["keys"]


@pytest.mark.parametrize("name", ["patterns", "rslora", "layers", "dora"])
def test_ranks_and_scales_become_one(name: str, tmp_path: Path) -> None:
    base = json.loads((GOLDEN / name / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = load_model(GOLDEN / base)
    model.load_adapter(GOLDEN / name)
    model.save_adapter(tmp_path / "mlx", format="mlx")
    shapes = {
        array.shape[1] for key, array in load_file(tmp_path / "mlx/adapters.safetensors").items() if key.endswith("lora_a")
    }
    assert len(shapes) == 1
    again = load_model(GOLDEN / base)
    again.load_adapter(tmp_path / "mlx")
    assert np.abs(again.decoder.logits(IDS) - model.decoder.logits(IDS)).max() < 1e-5


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    for base, name in (("tied", "tokens_tied"), ("biased", "save_norms")):
        model = load_model(GOLDEN / base)
        model.load_adapter(GOLDEN / name)
        with pytest.raises(AdapterError, match="MLX has no place for it"):
            model.save_adapter(tmp_path / "x", format="mlx")
    model = load_model(GOLDEN / "tied", quantize="nf4")
    model.add_adapter(r=2, init_lora_weights="pissa")
    with pytest.raises(AdapterError, match="a base of its own"):
        model.save_adapter(tmp_path / "x", format="mlx")
    assert not (tmp_path / "x").exists()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    shutil.copytree(GOLDEN / "mlx_lora", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    good = load_file(folder / "adapters.safetensors")
    key = next(iter(k for k in good if k.endswith("lora_b")))
    model = load_model(GOLDEN / "biased")

    def refused(match: str) -> None:
        with pytest.raises(AdapterError, match=match):
            model.load_adapter(folder)

    for changes, match in [
        ({"fine_tune_type": "full"}, "fine_tune_type: expected 'lora' or 'dora'"),
        ({"lora_parameters": [1]}, "lora_parameters: expected"),
        ({"lora_parameters": {"alpha": 3, "rank": 2}}, "lora_parameters.scale: expected a number, got None"),
        ({"lora_parameters": {"scale": 1, "dropout": 1.5}}, "lora_dropout"),
    ]:
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
        refused(match)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for tensors, match in [
        ({k: v for k, v in good.items() if k != key}, "got a file without it"),
        (good | {key: good[key][:, :-1].copy()}, "another base model"),
        (good | {key: np.full_like(good[key], np.nan)}, "expected finite numbers"),
        (good | {key.replace("lora_b", "m"): good[key][0].copy()}, "expected lora_a or lora_b of a projection"),
        (good | {"model.embed_tokens.lora_a": good[key]}, "expected lora_a or lora_b of a projection"),
    ]:
        save_file(tensors, folder / "adapters.safetensors")
        refused(match)
    (folder / "adapters.safetensors").write_bytes(b"\xff" * 40)
    refused("safetensors: expected")
    assert model.adapter_names == []
