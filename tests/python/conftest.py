"""Fixtures that several test files use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from built import BUILT, backend_library

import lora_c

if lora_c.__file__ is None:
    pytest.exit("lora_c is the C source folder, not the package: install it first (make test)", returncode=2)

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = ("fake", "shim", "cuda")
SHARED_DATA = ROOT.parent / "shared" / "data"

TINY_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 44,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        metavar="NAME",
        help="what models compute on where a test names nothing, with the libraries of build/release",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Let `--device NAME` reach the tests and the commands that they start, by the environment."""
    name = config.getoption("--device")
    if name is None:
        return
    os.environ["LORA_C_BACKENDS"] = os.pathsep.join(
        str(path) for name in BACKENDS if (path := BUILT / f"liblora_c_{name}.so").is_file()
    )
    os.environ["LORA_C_DEVICE"] = name
    found = {device.name: device for device in lora_c.devices()}
    if name not in found or not found[name].usable:
        reason = found[name].reason if name in found else f"--device: expected one of {', '.join(found)}, got {name}"
        pytest.exit(f"{reason}; `make check-cuda-c` builds fake and shim", returncode=2)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return the folder of a data set by name; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        folder = SHARED_DATA / name
        if not folder.exists():
            pytest.skip(f"needs {folder}, which is not part of this checkout")
        return folder

    return find


@pytest.fixture(scope="session")
def stories(shared_data: Callable[[str], Path]) -> Path:
    """The trained model of 260 thousand parameters with its golden records."""
    return shared_data("stories260K_hf")


def tiny_tensors(config: dict[str, Any], dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights for a config, in file names."""
    from lora_c.families.architectures import architecture_of

    rng = np.random.default_rng(seed)
    tensors = {}
    for spec in architecture_of(config).weights():
        array = rng.standard_normal(spec.shape) * (0.2 if len(spec.shape) == 2 else 0.1)
        if spec.kind == "vector" and not spec.name.endswith(".bias"):
            array = 1 + array
        tensors[spec.file_name] = array.astype(dtype)
    return tensors


def write_model(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """Write a model folder with the reference safetensors writer and a word tokenizer."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, config["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    (folder / "tokenizer_config.json").write_text(json.dumps(special), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The tiny model's parts: `config`, `tensors(config, dtype, seed)`, `write(folder, config, tensors)`."""
    return SimpleNamespace(config=TINY_CONFIG, tensors=tiny_tensors, write=write_model)


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Build a tiny random model folder; keywords change its config."""

    def make(name: str = "model", dtype: Any = np.float32, **changes: Any) -> Path:
        config = TINY_CONFIG | changes
        return write_model(tmp_path / name, config, tiny_tensors(config, dtype))

    return make


@pytest.fixture
def tiny_model_dir(make_model: Callable[..., Path]) -> Path:
    """A tiny random Llama in float32."""
    return make_model()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the device that tests/fake_device builds: the CPU's mathematics in memory that the host may not touch."""
    _take_backend("fake", monkeypatch)
    return "fake"


@pytest.fixture
def shim(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the device whose driver is tests/cuda/shim."""
    _take_backend("shim", monkeypatch)
    return "shim"


@pytest.fixture(params=("fake", "shim"))
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a device other than the CPU: that of `fake`, then the CUDA plug-in on its shim."""
    _take_backend(request.param, monkeypatch)
    return str(request.param)


def _take_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_C_BACKENDS", str(backend_library(name)))
    monkeypatch.delenv("LORA_C_DEVICE", raising=False)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests whose subject is the CPU itself: its kernels, its threads, its memory."""
    monkeypatch.delenv("LORA_C_DEVICE", raising=False)


@pytest.fixture
def bfloat16() -> Any:
    return np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a switch: from then on every fsync fails as on a full disk."""
    import errno

    def fill() -> None:
        def fail(handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)

    return fill


@pytest.fixture
def llama_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a small Llama as a GGUF file; keywords with dots replaced by two underscores change its metadata."""
    from gguf_files import llama_tensors, llama_values, write_file

    def make(kind: str | None = "Q4_0", name: str = "model.gguf", drop: tuple[str, ...] = (), **changes: Any) -> Path:
        values = llama_values(**{key.replace("__", "."): value for key, value in changes.items()})
        values = {key: value for key, value in values.items() if key not in drop}
        tensors = {key: value for key, value in llama_tensors(kind).items() if key not in drop}
        return write_file(tmp_path / name, values, tensors)

    return make


@pytest.fixture
def alone() -> Callable[..., str]:
    """Run code in a process of its own, where a crash, a hang or a hunger for memory is a failed test and no more."""
    import subprocess
    import sys

    from lora_c.files.system import resource

    def run(code: str, seconds: float = 100, gib: int = 6) -> str:
        def limit() -> None:
            if not any(name in os.environ.get("LD_PRELOAD", "") for name in ("asan", "tsan")):  # they map terabytes
                resource.setrlimit(resource.RLIMIT_AS, (gib << 30, gib << 30))

        paths = [str(Path(lora_c.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-X", "faulthandler", "-c", code]
        before = limit if resource else None  # Windows has no limits
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, preexec_fn=before)
        assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
        return done.stdout

    return run
