"""Activations that are kept in memory of the host: the same bits, less memory of the device, what is said without room."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built import backend_library

import lora_c as lc
from lora_c import _core
from lora_c.data import Dataset, Sample
from lora_c.errors import ConfigError
from lora_c.training.memory import forecast_model
from lora_c.training.trainer import Trainer

LAYERS, HIDDEN, TOKENS = 5, 32, 40
ADAPTER: dict[str, Any] = {"r": 4, "lora_dropout": 0.1}
Open = Callable[..., lc.Model]


@pytest.fixture(params=["cpu", "fake", "shim"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = request.param
    if name != "cpu":
        monkeypatch.setenv("LORA_C_BACKENDS", str(backend_library(name)))
    return name


@pytest.fixture
def open_model(make_model: Callable[..., Path]) -> Open:
    folder = make_model(num_hidden_layers=LAYERS)

    def load(device: str = "cpu", **adapter: Any) -> lc.Model:
        model = lc.load_model(folder, progress=False, device=device)
        model.add_adapter(**ADAPTER | adapter)
        for i, parameter in enumerate(model.trainable_parameters()):
            parameter.write(np.random.default_rng(i).normal(0, 0.1, parameter.shape).astype(np.float32))
        return model

    return load


def gradients(model: lc.Model, n: int = TOKENS) -> tuple[float, bytes]:
    """The loss of two micro-batches and what they leave in all gradients."""
    parameters = model.trainable_parameters()
    for parameter in parameters:
        parameter.zero_grad()
    loss = 0.0
    for micro in range(2):
        ids = ((np.arange(n) * (7 + micro)) % 60 + 3).astype(np.int32)
        loss += model.decoder.forward_backward(ids, [0, n // 3, n], ids, np.ones(n, np.float32), dropout_step=micro)
    return loss, b"".join(np.ascontiguousarray(p.grad).tobytes() for p in parameters)


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("recompute", ["none", "attention", "layer"])
def test_the_bits_stay(open_model: Open, device: str, recompute: Any, dtype: Any, precision: Any, tmp_path: Path) -> None:
    model = open_model(device)
    decoder = model.decoder
    if dtype == "int8" and device != "cpu":
        with pytest.raises(
            NotImplementedError, match=f"activation_dtype: expected float32 or bfloat16 on device {device}, got int8"
        ):
            decoder.activation_dtype = dtype
        return
    decoder.recompute, decoder.activation_dtype, decoder.precision = recompute, dtype, precision
    without = gradients(model)
    decoder.activation_offload = tmp_path
    assert decoder.activation_offload == str(tmp_path)
    assert gradients(model) == without
    assert gradients(model, 20) != without and gradients(model) == without  # another batch between
    decoder.activation_offload = None
    assert decoder.offload_bytes(TOKENS) == 0 and gradients(model) == without
    assert not list(tmp_path.glob("lora-c-*"))


@pytest.mark.parametrize("recompute", ["none", "attention", "layer"])
def test_the_device_keeps_what_is_forecast(open_model: Open, device: str, recompute: Any, tmp_path: Path) -> None:
    model = open_model(device)
    model.decoder.recompute = recompute
    plain = forecast_model(model, TOKENS)
    assert plain.offloaded == 0
    model.decoder.activation_offload = tmp_path
    plan = forecast_model(model, TOKENS)
    assert plan.activations < plain.activations and plan.total < plain.total
    if recompute == "layer":  # the input of each layer but the last, in float32
        assert plan.offloaded == (LAYERS - 1) * TOKENS * HIDDEN * 4
        assert (
            plain.activations - plan.activations == (LAYERS - 1) * TOKENS * HIDDEN * 4
        )  # two take turns in the place of L + 1
    assert plan.describe().endswith(f", and {plan.offloaded / 2**20:,.1f} of activations off-loaded to the host")
    before = _core.memory_report(device)["activations"]["live"]
    _core.reset_peak_memory(device)
    gradients(model)
    assert _core.memory_report(device)["activations"]["peak"] - before == plan.activations
    model.decoder.free_activations()


def test_bfloat16_halves_it(open_model: Open, tmp_path: Path) -> None:
    decoder = open_model().decoder
    decoder.activation_offload = tmp_path
    whole = decoder.offload_bytes(TOKENS)
    decoder.activation_dtype = "bfloat16"
    assert decoder.offload_bytes(TOKENS) == whole // 2


def run(model: lc.Model, out: Path, steps: int, resume: Any = False, **options: Any) -> bytes:
    samples = [
        Sample(np.array([*range(3 + i, 14 + i), 2], np.int32), (np.arange(12) >= 4).astype(np.float32)) for i in range(12)
    ]
    config = lc.TrainConfig(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=2, gradient_accumulation_steps=2, save_steps=2,
        learning_rate=1e-2, **options,
    )  # fmt: skip
    Trainer(model, Dataset(samples), config).train(resume)
    assert model.decoder.activation_offload is None  # the run's, not the model's
    return b"".join(np.ascontiguousarray(p.data).tobytes() for p in model.trainable_parameters())


def test_a_run_and_its_resumption(open_model: Open, tmp_path: Path) -> None:
    wanted = run(open_model(), tmp_path / "plain", 4)
    assert run(open_model(), tmp_path / "offload", 4, activation_offload=True) == wanted
    checkpoint = tmp_path / "plain" / "checkpoint-2"
    assert run(open_model(), tmp_path / "plain", 4, checkpoint, activation_offload=True) == wanted


def test_a_folder_that_is_not_there(open_model: Open, tmp_path: Path) -> None:
    model = open_model()
    model.decoder.activation_offload = tmp_path / "none"
    with pytest.raises(
        ValueError, match=r"^activation_offload: folder: expected one that can be written, got .*none; choose another"
    ):
        gradients(model)
    model.decoder.activation_offload = None
    gradients(model)


def test_a_run_names_the_option_of_its_folder(open_model: Open, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^activation_offload: folder: expected one that can be written, got /proc; .*paged_dir"
    ):
        run(open_model(), tmp_path / "run", 1, activation_offload=True, paged_dir="/proc")


def test_a_disk_without_room(open_model: Open, tmp_path: Path) -> None:
    model = open_model()
    model.decoder.activation_offload = tmp_path
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(
            MemoryError, match=r"^activation_offload: folder: expected room for \d+ MiB in .*; choose a folder"
        ):
            gradients(model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    model.decoder.activation_offload = None
    gradients(model)
