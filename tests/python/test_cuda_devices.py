"""NVIDIA GPUs as devices: what is said of those that cannot be used, by the plug-in with a driver that tests speak for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built import backend_library

import lora_c as lc


@pytest.fixture
def shim_devices() -> Callable[..., list[dict[str, Any]]]:
    """What `lora-c devices` lists with the plug-in on the shim, by what its driver says."""
    library = backend_library("shim")

    def listed(**said: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "lora_c", "devices", "--json"]
        environment = {**os.environ, "LORA_C_BACKENDS": str(library), **said}
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        found: list[dict[str, Any]] = json.loads(output)["devices"]
        assert found[0]["name"] == "cpu"
        return found[1:]

    return listed


def test_devices_that_can_be_used(shim_devices: Callable[..., list[dict[str, Any]]]) -> None:
    found = shim_devices(SHIM_DEVICES="2", SHIM_COMPUTE="8.6")
    assert [(device["name"], device["usable"]) for device in found] == [("shim", True), ("shim:1", True)]
    assert found[1]["description"] == "threads of the host, compute capability 8.6, 8.0 GiB, CUDA driver 13.0"


WITHOUT = {
    "no driver": ({"SHIM_DRIVER": "0"}, "expected NVIDIA's driver 580 or later, got none; install it where there is a GPU"),
    "an old driver": ({"SHIM_DRIVER": "12080"}, "expected NVIDIA's driver 580 or later (CUDA 13.0), got one for CUDA 12.8"),
    "no GPU": ({"SHIM_DEVICES": "0"}, "expected a GPU, got none; nvidia-smi and CUDA_VISIBLE_DEVICES say which there are"),
    "fewer than none": ({"SHIM_DEVICES": "-1"}, "expected a GPU, got none; nvidia-smi and CUDA_VISIBLE_DEVICES say which"),
    "Volta": ({"SHIM_COMPUTE": "7.0"}, "expected compute capability 7.5 or later (Turing), got 7.0; use device cpu"),
    "Maxwell": ({"SHIM_COMPUTE": "5.2"}, "expected compute capability 7.5 or later (Turing), got 5.2; use device cpu"),
    "no cuBLASLt": ({"SHIM_CUBLASLT": "search"}, "expected libcublasLt.so.13, got none"),
}


@pytest.mark.parametrize(("said", "reason"), WITHOUT.values(), ids=WITHOUT)
def test_devices_that_cannot(shim_devices: Callable[..., list[dict[str, Any]]], said: dict[str, str], reason: str) -> None:
    (device,) = shim_devices(**said)
    assert not device["usable"] and device["reason"].startswith(f"shim: {reason}")


@pytest.mark.parametrize(
    "use",
    [
        lambda: lc.load_model("demo", device="cuda"),
        lambda: lc.NF4Tensor.quantize(np.ones((64, 64), np.float32), device="cuda"),
        lambda: lc.to_device(np.ones(3, np.float32), "cuda:1"),
        lambda: lc.memory_info("cuda"),
    ],
    ids=["load_model", "quantize", "to_device", "memory_info"],
)
def test_an_installation_without_the_plug_in(use: Callable[[], object]) -> None:
    if any(device.name == "cuda" for device in lc.devices()):
        pytest.skip("this installation has the plug-in")
    with pytest.raises(
        lc.DeviceError, match="cuda: expected the plug-in for NVIDIA GPUs, got an installation without it; install"
    ):
        use()


# What the plug-in calls of cuBLASLt, in a library that has nothing else.
CUBLASLT = (
    "Create Destroy GetVersion MatmulDescCreate MatmulDescDestroy MatmulDescSetAttribute MatrixLayoutCreate "
    "MatrixLayoutDestroy MatmulPreferenceCreate MatmulPreferenceDestroy MatmulPreferenceSetAttribute "
    "MatmulAlgoGetHeuristic Matmul"
).split()


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_cublaslt_lies_beside_the_packages_of_the_process(tmp_path: Path) -> None:
    """As in an installation from its sources, where the plug-in itself does not lie there."""
    packages = tmp_path / "a-packages" / "site-packages"
    (packages / "nvidia/cu13/lib").mkdir(parents=True)
    (tmp_path / "x.c").write_text("".join(f"void cublasLt{name}(void) {{}}\n" for name in CUBLASLT))
    make = ["cc", "-shared", "-fPIC", str(tmp_path / "x.c"), "-o"]
    subprocess.run([*make, str(packages / "nvidia/cu13/lib/libcublasLt.so.13")], check=True)
    subprocess.run([*make, str(packages / "some.so")], check=True)
    environment = os.environ | {"LORA_C_BACKENDS": str(backend_library("shim")), "SHIM_CUBLASLT": "search"}
    program = f"import ctypes, lora_c; ctypes.CDLL({str(packages / 'some.so')!r}); print([d.reason for d in lora_c.devices()])"
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "['', '']"


def test_the_first_of_several_goes_by_its_number_too(shim: str, tiny_model_dir: Path) -> None:
    parameter = lc.Parameter(np.ones((2, 2), np.float32), device="shim:0")
    assert parameter.device == shim and lc.load_model(tiny_model_dir, progress=False, device="shim:0").device == shim
    assert lc.memory_report("shim:0") == lc.memory_report(shim)


def test_one_that_cannot_be_used_stands_for_all() -> None:
    environment = os.environ | {"LORA_C_BACKENDS": str(backend_library("shim")), "SHIM_DRIVER": "0"}
    command = [sys.executable, "-m", "lora_c", "generate", "--model", "demo", "x", "--device", "shim:1"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 1 and "shim: expected NVIDIA's driver 580 or later, got none" in said.stderr, said


def test_the_device_of_the_environment(tiny_model_dir: Path, fake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lc.load_model(tiny_model_dir, progress=False).device == "cpu"
    monkeypatch.setenv("LORA_C_DEVICE", fake)
    assert lc.load_model(tiny_model_dir, progress=False).device == fake
    assert lc.load_model(tiny_model_dir, progress=False, device="cpu").device == "cpu"
    monkeypatch.setenv("LORA_C_DEVICE", "tpu")
    with pytest.raises(lc.ConfigError, match="device: expected one of cpu, .*got tpu"):
        lc.load_model(tiny_model_dir, progress=False)
