"""Models on a device that is not the CPU: the same bits, the same files, and few transfers (tests/fake_device)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from bits.cases import ADAPTERS, decoding, fill, gradients, training

import lora_c as lc
from lora_c import _core
from lora_c.data import Dataset, Sample
from lora_c.errors import ConfigError
from lora_c.model.model import Model
from lora_c.training.memory import forecast
from lora_c.training.trainer import Trainer

METHODS: dict[str, dict[str, Any]] = {
    "lora": {}, "qlora": {"quantize": "nf4"}, "full": {"trainable": "full"}, "head": {"trainable": "head"},
}  # fmt: skip


def samples(n: int = 12, length: int = 12) -> Dataset:
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, 60, length).astype(np.int32) for _ in range(n)]
    return Dataset([Sample(i, np.ones(len(i), np.float32)) for i in ids])


@pytest.fixture
def open_model(make_model: Callable[..., Path], fake: str) -> Callable[..., Model]:
    """Load the tiny model on a device; adapter: options of one."""
    folder = make_model()

    def load(device: str, adapter: dict[str, Any] | None = None, **options: Any) -> Model:
        model = lc.load_model(folder, progress=False, device=device, **options)
        if adapter is not None:
            model.add_adapter(**adapter)
            fill(model)
        return model

    return load


@pytest.fixture
def make_trainer(open_model: Callable[..., Model], tmp_path: Path) -> Callable[..., Trainer]:
    def make(device: str, method: str = "lora", callbacks: Any = (), out: str | None = None, **changes: Any) -> Trainer:
        adapter = {"r": 4, "use_dora": True, "lora_dropout": 0.1} if method in ("lora", "qlora") else None
        model = open_model(device, adapter, **METHODS[method])
        given = {"max_steps": 20, "save_steps": 0, "per_device_train_batch_size": 2, "learning_rate": 1e-2, **changes}
        config = lc.TrainConfig(method=method, output_dir=str(tmp_path / (out or f"{method}-{device}")), **given)
        trainer = Trainer(model, samples(), config, callbacks=callbacks)
        trainer.run_id = "the same for all"
        return trainer

    return make


def state(trainer: Trainer) -> list[bytes]:
    """All that training changes, as bytes."""
    moments = trainer.optimizer.state_dict()
    return [array.tobytes() for array in (*(p.data for p in trainer.parameters), *moments["m"], *moments["v"])]


def files(folder: Path) -> dict[str, bytes]:
    """Of a checkpoint or an adapter, apart from when and where it was written."""
    paths, where = [path for path in sorted(folder.rglob("*")) if path.is_file()], str(folder).encode()
    found = {str(path.relative_to(folder)): path.read_bytes().replace(where, b"") for path in paths}
    position = json.loads(found.pop("trainer_state.json", b"{}"))
    found["position"] = json.dumps([position.get(key) for key in ("step", "run", "files")]).encode()
    return found


# -- the same bits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_trains_as_on_the_cpu(make_trainer: Callable[..., Trainer], method: str) -> None:
    trainers = [make_trainer(device, method, gradient_accumulation_steps=2) for device in ("cpu", "fake")]
    for trainer in trainers:
        trainer.train()
    expected, got = trainers
    assert got.model.device == "fake" and {p.device for p in got.parameters} == {"fake"}
    assert [r["loss"] for r in got.history] == [r["loss"] for r in expected.history] and len(got.history) == 20
    assert [r["grad_norm"] for r in got.history] == [r["grad_norm"] for r in expected.history]
    assert state(got) == state(expected)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_of_every_kind(open_model: Callable[..., Model], tmp_path: Path, kind: str) -> None:
    found = []
    for device in ("cpu", "fake"):
        model = open_model(device, ADAPTERS[kind])
        parts = [gradients(model, 40), decoding(model, 30), training(model, 40, 5), decoding(model, 30)]
        model.save_adapter(tmp_path / device)
        merged = [model.merge(dtype=dtype) for dtype in ("float32", "bfloat16", "nf4")]
        assert {m.device for m in merged} == {device}
        parts += [m.dense_weight(name).tobytes() for m in merged for name in sorted(m.weights)]
        parts += [m.logits([3, 4, 5]).tobytes() for m in merged]
        found.append(parts)
    assert found[0] == found[1]
    assert files(tmp_path / "cpu") == files(tmp_path / "fake")
    for trainable in (True, False):
        loaded = [open_model(device) for device in ("cpu", "fake")]
        for model in loaded:
            model.load_adapter(tmp_path / "fake", is_trainable=trainable)
        assert loaded[0].logits([3, 7, 2]).tobytes() == loaded[1].logits([3, 7, 2]).tobytes()


@pytest.mark.parametrize("start", ["pissa", "olora", "loftq"])
def test_adapters_that_change_their_base(open_model: Callable[..., Model], tmp_path: Path, start: str) -> None:
    quantize = {"quantize": "nf4"} if start == "loftq" else {}
    models = [open_model(device, {"r": 4, "init_lora_weights": start}, **quantize) for device in ("cpu", "fake")]
    assert gradients(models[0], 40) == gradients(models[1], 40)
    for model in models:
        model.save_adapter(tmp_path / model.device)
    assert files(tmp_path / "cpu") == files(tmp_path / "fake")


def test_adapters_are_swapped_combined_folded_in_and_taken_out(open_model: Callable[..., Model]) -> None:
    found = []
    for device in ("cpu", "fake"):
        model = open_model(device, {"r": 4, "use_dora": True})
        ids, seen = [3, 9, 4, 1], []
        base = model.logits(ids)
        model.merge_adapter()
        seen.append(model.logits(ids))
        model.unmerge_adapter()
        seen.append(model.logits(ids))
        assert np.array_equal(seen[-1], base)
        model.add_adapter(r=2, name="other")
        model.set_adapter("default")
        model.set_adapter("other")
        fill(model)
        seen.append(model.logits(ids))
        with model.disable_adapter():
            seen.append(model.logits(ids))
        model.delete_adapter("default")
        model.add_adapter(r=2, name="third")
        model.add_weighted_adapter(["other", "third"], [0.5, 0.5], "both", "cat")
        model.set_adapter("both")
        seen.append(model.logits(ids))
        found.append(b"".join(array.tobytes() for array in seen))
    assert found[0] == found[1]


def test_a_trained_weight_is_folded_in_and_saved(open_model: Callable[..., Model], tmp_path: Path) -> None:
    for device in ("cpu", "fake"):
        model = open_model(device, {"r": 4, "target_modules": ["q_proj"]}, trainable="head")
        training(model, 40, 3)
        model.save_adapter(tmp_path / f"adapter-{device}")
        model.merge().save(tmp_path / f"merged-{device}")
        full = open_model(device, trainable="full")
        training(full, 40, 3)
        full.save(tmp_path / f"full-{device}")
    for what in ("adapter", "merged", "full"):
        assert files(tmp_path / f"{what}-cpu") == files(tmp_path / f"{what}-fake")


def test_more_rows(open_model: Callable[..., Model]) -> None:
    for options in ({}, {"trainable": "full"}, {"trainable": "head"}):
        models = [open_model(device, **options) for device in ("cpu", "fake")]
        for model in models:
            model.resize_embedding(70)
        assert models[1].device == "fake"
        assert models[0].logits([3, 69, 4]).tobytes() == models[1].logits([3, 69, 4]).tobytes()


def test_generates_and_measures_as_on_the_cpu(open_model: Callable[..., Model]) -> None:
    models = [open_model(device, {"r": 4}, quantize="nf4") for device in ("cpu", "fake")]
    for ask in (
        lambda m: m.generate([3, 4, 5], max_new_tokens=12),
        lambda m: m.generate([[3, 4, 5], [6, 7]], max_new_tokens=12, ignore_eos=True),
        lambda m: m.generate([3, 4, 5], max_new_tokens=12, temperature=0.9, top_k=20, seed=1),
        lambda m: list(m.stream([3, 4, 5], max_new_tokens=12)),
        lambda m: m.log_probs([3, 4, 5, 6]).tolist(),
        lambda m: m.loss([3, 4, 5, 6]),
        lambda m: m.hidden_states([3, 4, 5, 6], 1).tolist(),
        lambda m: m.embed([[3, 4], [5, 6, 7]]).tolist(),
    ):  # fmt: skip
        assert ask(models[0]) == ask(models[1])


# -- runs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("first", "then"), [("cpu", "fake"), ("fake", "cpu")])
def test_a_run_goes_on_on_another_device(make_trainer: Callable[..., Trainer], method: str, first: str, then: str) -> None:
    steps = {"max_steps": 6, "save_steps": 3, "save_total_limit": None}
    whole, begun = make_trainer("cpu", method, out="whole", **steps), make_trainer(first, method, out="begun", **steps)
    whole.train()
    begun.train()
    for step in (3, 6):
        assert files(whole.output_dir / f"checkpoint-{step}") == files(begun.output_dir / f"checkpoint-{step}")
    rest = make_trainer(then, method, out="begun", **steps)
    rest.train(resume=begun.output_dir / "checkpoint-3")
    assert rest.resumed_at == 6 and state(rest) == state(whole)
    assert files(rest.output_dir / "checkpoint-6") == files(whole.output_dir / "checkpoint-6")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_step_uploads_a_batch_and_downloads_two_numbers(
    make_trainer: Callable[..., Trainer], method: str, accumulation: int
) -> None:
    seen: list[dict[str, int]] = []

    class Count(lc.Callback):
        def on_step(self, state: Any) -> None:
            seen.append(_core.transfers("fake"))

    make_trainer("fake", method, [Count()], max_steps=8, gradient_accumulation_steps=accumulation).train()
    steps = [{key: after[key] - before[key] for key in after} for before, after in zip(seen, seen[1:], strict=False)]
    assert steps == [steps[0]] * 7
    # Each batch is one upload of its tables and one loss of 8 bytes; the norm of the gradients comes once a step.
    assert steps[0]["uploads"] == accumulation and steps[0]["uploaded_bytes"] < 2048 * accumulation
    assert steps[0]["downloads"] == steps[0]["syncs"] == accumulation + 1
    assert steps[0]["downloaded_bytes"] == 8 * (accumulation + 1)


# Every device of the fake kind maps its memory twice.
OPENED_AT_ONCE = """
import threading
from pathlib import Path
from lora_c import _core
start, found = threading.Barrier(8), []
def use():
    start.wait()
    found.append(_core.transfers("fake"))
threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(found), Path("/proc/self/maps").read_text().count("lora_fake_device"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_threads_that_use_a_device_for_the_first_time_open_it_once(fake: str) -> None:
    for _ in range(5):
        run = subprocess.run([sys.executable, "-c", OPENED_AT_ONCE], check=True, capture_output=True, text=True)
        assert run.stdout == "8 2\n"


def test_memory_is_that_of_the_device(make_trainer: Callable[..., Trainer]) -> None:
    before = _core.memory_report("fake")
    trainer = make_trainer("fake", "qlora", max_steps=3)
    plan, live = forecast(trainer), _core.memory_report("fake")
    trained = sum(p.size for p in trainer.parameters) * 4
    assert live["parameters"]["live"] - before["parameters"]["live"] == trained == plan.parameters
    assert plan.base == live["base weights"]["live"] > 0
    result = trainer.train()
    assert 0 < result.peak_memory_bytes == _core.memory_report("fake")["total"]["peak"]
    del trainer
    assert "on fake" in repr(make_trainer("fake").model) and "fake" in make_trainer("fake").model._repr_html_()


# -- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("abacus", ConfigError, r"device: expected one of cpu, fake, fake:broken, got abacus; `lora-c devices` lists them"),
        ("fake:broken", lc.DeviceError, "fake:broken: expected a device that works, got none; use fake"),
        ("", ConfigError, "device: expected one of cpu"),
        (1, ConfigError, "device: expected a name of devices"),
    ],
)
def test_a_device_that_cannot_be_used_is_refused_before_anything_is_read(
    fake: str, tmp_path: Path, device: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lc.load_model(tmp_path / "nothing is there", device=device)


def test_a_library_that_is_no_backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"no library")
    monkeypatch.setenv("LORA_C_BACKENDS", str(tmp_path / "broken.so"))
    found = [device for device in lc.devices() if device.name == "broken.so"]
    assert [device.usable for device in found] == [False] and "expected a library that loads" in found[0].reason
    with pytest.raises(lc.DeviceError, match="expected a library that loads"):
        lc.load_model(tmp_path, device="broken.so")
