"""Classifiers against transformers and PEFT: logits, losses and gradients, of every family and every problem."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_values import write_values

import lora_c as lc
from lora_c.checkpoints.safetensors_file import SafetensorsFile
from lora_c.checkpoints.safetensors_writer import TensorEntry, write_safetensors
from lora_c.data import Sample
from lora_c.data.batching import pack
from lora_c.families.architectures import architecture_of
from lora_c.families.labels import as_language_model

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.append(str(GOLDEN))
from weights_of_names import tensor  # noqa: E402

RECORDS = np.load(GOLDEN / "classifiers.npz")
CASES = [key.removesuffix(".config") for key in RECORDS.files if key.endswith(".config")]
ADAPTERS = GOLDEN / "classifier_adapters"
LENGTHS = (5, 11, 8)
TOLERANCE = 1e-4  # relative to the norm


def config_of(case: str) -> dict[str, Any]:
    """As transformers has written it."""
    found: dict[str, Any] = json.loads(bytes(RECORDS[f"{case}.config"]))
    return found


def write_folder(folder: Path, config: dict[str, Any]) -> Path:
    """A model folder whose tensors are those of their names."""
    folder.mkdir(exist_ok=True)
    architecture = architecture_of(config)
    around_zero = architecture.family.model_type.startswith("gemma")
    entries = [TensorEntry.of(s.file_name, tensor(s.file_name, s.file_shape, around_zero)) for s in architecture.weights()]
    with open(folder / "model.safetensors", "wb") as file:
        write_safetensors(file.write, entries, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ids_of(case: str) -> list[np.ndarray]:
    rng = np.random.default_rng(len(case))
    return [rng.integers(3, 60, n).astype(np.int32) for n in LENGTHS]


def batch_of(case: str) -> Any:
    labels = RECORDS[f"{case}.labels"]
    zeros = [np.zeros(len(ids), np.float32) for ids in ids_of(case)]
    return pack([Sample(ids, mask, label=label) for ids, mask, label in zip(ids_of(case), zeros, labels, strict=True)])


def is_close(got: Any, want: Any) -> bool:
    return bool(np.linalg.norm(np.asarray(got) - want) <= TOLERANCE * np.linalg.norm(want))


def loss_and_gradients(model: lc.Model, case: str) -> float:
    batch = batch_of(case)
    for parameter in model.trainable_parameters():
        parameter.zero_grad()
    arrays = batch.input_ids, batch.cu_seqlens, batch.targets, batch.loss_weight
    loss = model.decoder.forward_backward(*arrays, grad_scale=1 / batch.total_weight) / batch.total_weight
    assert model.decoder.loss(*arrays) / batch.total_weight == pytest.approx(loss, rel=1e-12)
    return loss


def logits_of(model: lc.Model, case: str) -> Any:
    batch = batch_of(case)
    return model.decoder.last_logits(batch.input_ids, batch.cu_seqlens)


def test_logits_loss_and_score(case: str, tmp_path: Path) -> None:
    model = lc.load_model(write_folder(tmp_path / "m", config_of(case)), trainable="head", progress=False)
    assert is_close(logits_of(model, case), RECORDS[f"{case}.logits"])
    assert loss_and_gradients(model, case) == pytest.approx(float(RECORDS[f"{case}.loss"]), rel=TOLERANCE)
    (score,) = model.trainable_parameters()
    assert score.name == "score.weight"
    assert is_close(score.grad, RECORDS[f"{case}.head_grad"])


def test_gradients_of_an_adapter(case: str, tmp_path: Path) -> None:
    model = lc.load_model(write_folder(tmp_path / "m", config_of(case)), progress=False)
    keys = [key.removeprefix(f"{case}.grad.") for key in RECORDS.files if key.startswith(f"{case}.grad.")]
    targets = sorted({key.removesuffix(".lora_A.weight").rpartition(".")[2] for key in keys if "lora_A" in key})
    model.add_adapter(lc.LoraConfig(r=2, lora_alpha=6, target_modules=targets, task_type="SEQ_CLS"))
    parameters = {parameter.name: parameter for parameter in model.trainable_parameters()}
    assert sorted(parameters) == sorted(keys)
    around_zero = model.architecture.family.model_type.startswith("gemma")
    for name, parameter in parameters.items():
        write_values(parameter, tensor(name, parameter.shape, around_zero))
    assert is_close(logits_of(model, case), RECORDS[f"{case}.adapted.logits"])
    assert loss_and_gradients(model, case) == pytest.approx(float(RECORDS[f"{case}.adapted.loss"]), rel=TOLERANCE)
    for name, parameter in parameters.items():
        assert is_close(parameter.grad, RECORDS[f"{case}.grad.{name}"]), name


@pytest.mark.parametrize("case", [path.name for path in sorted(ADAPTERS.iterdir())])
def test_adapters_of_peft(case: str, tmp_path: Path) -> None:
    config = config_of(case)
    folder = write_folder(tmp_path / "classifier", config)
    model = lc.load_model(folder, progress=False)
    model.load_adapter(ADAPTERS / case)
    assert is_close(logits_of(model, case), RECORDS[f"{case}.adapted.logits"])
    # on the language model alone: as many labels as the score has rows
    base = write_folder(tmp_path / "base", as_language_model(config))
    alone = lc.load_model(base, progress=False)
    with pytest.warns(lc.LoraCWarning, match="adapter of a classifier"):
        alone.load_adapter(ADAPTERS / case)
    assert alone.labels is not None and len(alone.labels) == RECORDS[f"{case}.logits"].shape[1]
    assert np.array_equal(logits_of(alone, case), logits_of(model, case))
    # and written again: the same tensors under the same names
    alone.save_adapter(tmp_path / "again")
    values = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert values["task_type"] == "SEQ_CLS" and values["modules_to_save"] == ["classifier", "score"]
    files = [SafetensorsFile(path / "adapter_model.safetensors") for path in (ADAPTERS / case, tmp_path / "again")]
    assert sorted(files[0].tensors) == sorted(files[1].tensors)
    for name in files[0].tensors:
        assert np.array_equal(files[0].read(name), files[1].read(name)), name
    merged = model.merge()
    merged.save(tmp_path / "merged")
    shutil.rmtree(folder)
    again = lc.load_model(tmp_path / "merged", progress=False)
    assert again.labels == model.labels and is_close(logits_of(again, case), RECORDS[f"{case}.adapted.logits"])
