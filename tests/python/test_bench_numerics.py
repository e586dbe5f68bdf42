"""`lora-c bench --numerics`: what is compared with what, the verdict, the table and the picture."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import called, environment, interrupted
from test_reports import own_keys

import lora_c as lc
from lora_c.checkpoints.model_names import BASE_MODEL
from lora_c.cli.numerics_report import verdict_lines
from lora_c.comparison.numerics import compare_precisions, gradient_cosines, precisions_of
from lora_c.comparison.numerics_record import Cosines, NumericsRecord, PrecisionRun, module_of, place_of, short_name
from lora_c.data import Dataset
from lora_c.data.samples import Sample
from lora_c.demo.run import dataset
from lora_c.demo.world import task
from lora_c.display.numerics_picture import draw_numerics, smooth
from lora_c.errors import ConfigError, DivergenceError
from lora_c.model.model import Model
from lora_c.training import saving
from lora_c.training import trainer as trainer_module
from lora_c.training.trainer import Trainer

OPTIONS: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "save_steps": 0.0}
ADAPTER = lc.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
V = "base_model.model.model.layers.3.self_attn.v_proj.lora_B.weight"
OUT = "base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"


@pytest.fixture
def base() -> Model:
    return lc.load_model(BASE_MODEL, quantize="nf4", progress=False)


def data_of(model: Model) -> tuple[Dataset, Dataset]:
    train, held_out = task(0, 24, 6)
    return dataset(model, train), dataset(model, held_out)


def record_of(exact: list[float], fast: list[float | None], **more: Any) -> NumericsRecord:
    runs = {"exact": [PrecisionRun([3.0, 2.0], loss, 100.0, 1 << 20) for loss in exact]}
    runs["fast"] = [
        PrecisionRun([3.0, 2.0], loss, 200.0, 3 << 20, {V: 0.96, OUT: 0.98}, "" if loss else "why") for loss in fast
    ]
    return NumericsRecord(list(range(len(exact))), runs, **more)


# --- what follows from numbers -------------------------------------------------------------------------------------------


def test_figures_worked_out_by_hand() -> None:
    record = record_of([1.0, 1.2, 1.4], [1.01, 1.17, 1.42])
    assert record.spread == pytest.approx(0.2)  # sqrt((0.04 + 0 + 0.04) / 2)
    assert record.differences("fast") == pytest.approx([0.01, -0.03, 0.02]) and record.eval_loss("fast") == pytest.approx(1.2)
    assert record.largest_difference("fast") == pytest.approx(0.03) and record.is_below_spread("fast") is True
    assert record.cosines("fast") == Cosines(pytest.approx(0.97), 0.96, V)
    assert record.modules("fast") == {
        "v_proj": Cosines(pytest.approx(0.96), 0.96, V),
        "o_proj": Cosines(pytest.approx(0.98), 0.98, OUT),
    }
    assert record.worse("fast") == {V: 0.96}
    assert (record.tokens_per_second("fast"), record.peak_memory_bytes("fast")) == (200.0, 3 << 20)
    assert "differences" not in record.as_dict()["precisions"]["exact"]


@pytest.mark.parametrize(("fast", "is_below", "said"), [
    ([1.01, 1.17, 1.42], True, "differs from exact by 0.03000 at most, which is below the spread between seeds, 0.20000"),
    ([1.01, 0.99, 1.42], False, "differs from exact by 0.21000 at most, which is NOT below the spread between seeds, 0.20000"),
    ([1.01, None, 1.42], False, "diverged with seed 1, where exact does not: why"),
])  # fmt: skip
def test_the_verdict(fast: list[float | None], is_below: bool, said: str) -> None:
    record = record_of([1.0, 1.2, 1.4], fast)
    lines = verdict_lines(record)
    assert record.is_below_spread("fast") is is_below and lines[0].endswith(said)
    assert lines[1].endswith("below 0.97: model.layers.3.self_attn.v_proj.lora_B 0.960") and len(lines) == 2


def test_one_seed_has_no_spread_and_a_device_may_lack_a_precision() -> None:
    record = record_of([1.0], [1.01], left_out={"int8": "precision: expected exact or fast on device x, got int8"})
    assert record.spread is None and record.is_below_spread("fast") is None
    lines = verdict_lines(record)
    assert lines[0].endswith("one seed has no spread to hold it against, give --seeds 3")
    assert lines[-1] == "left out  int8: precision: expected exact or fast on device x, got int8"


def test_parts_of_the_name_of_a_parameter() -> None:
    assert (short_name(V), module_of(V), place_of(V)) == ("model.layers.3.self_attn.v_proj.lora_B", "v_proj", "3 B")
    head = "base_model.model.lm_head.lora_A.weight"
    assert (module_of(head), place_of(head)) == ("lm_head", "A")


# --- what is run ---------------------------------------------------------------------------------------------------------


def test_runs_are_those_of_the_trainer(base: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, held_out = data_of(base)
    writes: list[int] = []
    real = saving.save_checkpoint
    monkeypatch.setattr(saving, "save_checkpoint", lambda trainer, done: (writes.append(done), real(trainer, done)))
    told: list[tuple[str, int]] = []
    record = compare_precisions(
        base, train, held_out, OPTIONS, ADAPTER, [3, 4], tmp_path / "runs", lambda *run: told.append(run)
    )
    assert told == [(precision, seed) for seed in (3, 4) for precision in ("exact", "fast", "int8")]
    assert base.adapter is None and not list((tmp_path / "runs").iterdir())
    assert writes == []
    for precision, runs in record.runs.items():
        model = lc.load_model(BASE_MODEL, quantize="nf4", progress=False)
        model.add_adapter(ADAPTER.model_copy(update={"seed": 4}))
        config = lc.TrainConfig(**OPTIONS | {"precision": precision, "seed": 4, "output_dir": str(tmp_path / precision)})
        result = Trainer(model, train, config, held_out).train()
        assert (runs[1].eval_loss, runs[1].losses) == (result.eval_loss, [r["loss"] for r in result.history if "loss" in r])
        assert bool(runs[1].cosines) == (precision != "exact") and runs[1].peak_memory_bytes
    names = {parameter.name for parameter in model.trainable_parameters()}
    assert record.runs["int8"][0].cosines.keys() == names and min(record.runs["int8"][0].cosines.values()) > 0.9
    assert record.spread and record.eval_loss("int8") != record.eval_loss("exact")


def test_cosines_are_those_of_the_gradients_of_the_next_step(base: Model, tmp_path: Path) -> None:
    train, held_out = data_of(base)
    base.add_adapter(ADAPTER)
    trainer = Trainer(base, train, lc.TrainConfig(**OPTIONS | {"max_steps": 1, "output_dir": str(tmp_path)}), held_out)
    trainer.train()
    before = [parameter.data.copy() for parameter in trainer.parameters]
    zero = trainer.parameters[0]
    assert zero.name.endswith("lora_A.weight")
    trainer.parameters[1].write(np.zeros(trainer.parameters[1].shape, np.float32))  # without B there is no gradient of A
    found = gradient_cosines(trainer, ("exact", "int8"))
    assert set(found) == {"int8"} and zero.name not in found["int8"] and len(found["int8"]) == len(trainer.parameters) - 1
    trainer.parameters[1].write(before[1])
    found = gradient_cosines(trainer, ("exact", "fast", "int8"))
    assert all(np.array_equal(a, parameter.data) for a, parameter in zip(before, trainer.parameters, strict=True))
    assert np.mean(list(found["fast"].values())) > np.mean(list(found["int8"].values()))

    samples = [train[int(i)] for i in np.asarray(_second_batch(trainer))]
    ids = np.concatenate([s.input_ids for s in samples]).astype(np.int32)
    cu = np.cumsum([0] + [len(s.input_ids) for s in samples]).astype(np.int32)
    gradients = []
    for precision in ("exact", "int8"):
        base.decoder.precision = precision
        trainer.optimizer.zero_grad()
        targets, weight = _targets(samples, ids, cu)
        base.decoder.forward_backward(ids, cu, targets, weight, grad_scale=1 / float(weight.sum()))
        gradients.append([np.ravel(p.grad).astype(np.float64) for p in trainer.parameters])
    for parameter, a, b in zip(trainer.parameters, *gradients, strict=True):
        cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        assert found["int8"][parameter.name] == pytest.approx(cosine, abs=1e-12)


def _second_batch(trainer: Trainer) -> Any:
    from lora_c.data.batching import epoch_order

    return epoch_order(len(trainer.train_data), trainer.config.seed, 0, True)[2:4]


def _targets(samples: list[Any], ids: np.ndarray, cu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weight = np.concatenate([np.append(np.asarray(s.loss_mask, np.float32)[1:], 0) for s in samples])
    return np.roll(ids, -1), weight.astype(np.float32)


def test_gradients_that_are_rounding_alone_are_not_compared(base: Model, tmp_path: Path) -> None:
    """Attention to one token is that token, whatever q and k are."""
    one = Dataset([Sample(np.array([7, 9], np.int32), np.array([True, True]))] * 4)
    record = compare_precisions(base, one, data_of(base)[1], OPTIONS, ADAPTER, [0], tmp_path)
    assert "v_proj" in record.modules("fast") and record.modules("fast").keys().isdisjoint({"q_proj", "k_proj"})


def test_a_precision_that_diverges_is_a_result_and_exact_is_an_error(base: Model, tmp_path: Path, monkeypatch) -> None:
    train, held_out = data_of(base)
    real = trainer_module.one_step
    broken = {"fast"}

    def one_step(trainer: Trainer, step: int, progress: Any) -> None:
        if trainer.config.precision in broken and step == 2:
            raise DivergenceError("expected a finite loss at step 3, got nan")
        real(trainer, step, progress)

    monkeypatch.setattr(trainer_module, "one_step", one_step)
    record = compare_precisions(base, train, held_out, OPTIONS, ADAPTER, [0], tmp_path / "a")
    run = record.runs["fast"][0]
    assert run.eval_loss is None and "expected a finite loss" in run.diverged and len(run.losses) == 2
    assert record.differences("fast") is None and record.is_below_spread("fast") is False
    draw_numerics(record.as_dict(), tmp_path / "a.png", "one diverged")
    broken.add("exact")
    with pytest.raises(DivergenceError, match="got nan, in precision exact; start again with") as raised:
        compare_precisions(base, train, held_out, OPTIONS, ADAPTER, [0], tmp_path / "b")
    assert str(tmp_path) not in str(raised.value)  # no checkpoint is named: they are gone
    assert base.adapter is None


def test_a_device_without_int8_is_compared_in_the_others(fake: str) -> None:
    model = lc.load_model(BASE_MODEL, device=fake, progress=False)
    before = model.decoder.precision
    found, left_out = precisions_of(model)
    assert found == ["exact", "fast"] and model.decoder.precision == before
    assert left_out == {"int8": "precision: expected exact or fast on device fake, got int8"}


def test_held_out_rows_are_needed(base: Model, tmp_path: Path) -> None:
    train, held_out = data_of(base)
    with pytest.raises(ConfigError, match="eval_data: expected held-out rows"):
        compare_precisions(base, train, Dataset([], n_examples=0), OPTIONS, ADAPTER, [0], tmp_path)


# --- the picture ---------------------------------------------------------------------------------------------------------


def test_curves_are_means_of_windows() -> None:
    steps, losses = smooth([[4.0, 2.0, 3.0], [1.0, 1.0, 1.0, 9.0]])
    assert steps.tolist() == [1.0, 2.0, 3.0] and losses.tolist() == [[4.0, 2.0, 3.0], [1.0, 1.0, 1.0]]
    steps, losses = smooth([list(np.arange(100.0))])
    assert len(steps) == 25 and steps[0] == 2.5 and losses[0, 0] == 1.5 and losses[0, -1] == 97.5


# --- the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("n")
    lines = [json.dumps(example) + "\n" for example in task(1, 16, 1)[0]]
    (folder / "chat.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


LINE = "bench --numerics --data chat.jsonl --val-fraction 0.25 --steps 3 --batch 2 --rank 2 --lr 1e-3"


def test_the_command_writes_and_says_what_it_found(place: Path) -> None:
    done = called(place, f"{LINE} --seeds 2 --output-dir out".split())
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^verdict   int8: held-out loss differs from exact by 0\.\d{5} at most, which is (NOT )?below", done.stdout, re.M
    )
    assert "3 steps of 2 sequences, rank 2, learning rate 0.001, 2 seeds" in done.stdout
    assert {line.split()[0] for line in done.stdout.splitlines() if line[:1].isalpha()} >= {
        "exact",
        "fast",
        "int8",
        "down_proj",
    }
    assert (place / "out/numerics.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads((place / "out/numerics.json").read_text())
    assert (
        found["seeds"] == [0, 1]
        and found["steps"] == 3
        and not [key for key in own_keys(found) if not re.fullmatch(r"[a-z][a-z0-9_]*", key)]
    )
    assert [len(losses) for losses in found["precisions"]["int8"]["losses"]] == [3, 3]
    assert done.stderr.count("run       ") == 6
    again = called(place, f"{LINE} --output-dir out".split())
    assert again.returncode == 2 and "which holds a comparison (numerics.json); give --output-dir out-2" in again.stderr


def test_json_without_a_folder(place: Path) -> None:
    before = sorted(place.iterdir())
    done = called(place, f"{LINE} --seeds 1 --seed 5 --json".split())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["seeds"] == [5] and found["spread"] is None and found["written"] == [] and found["output_dir"] is None
    assert found["precisions"]["int8"]["is_below_spread"] is None
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize(("line", "said"), [
    ("bench --numerics", "data: expected training data beside --numerics, got nothing; give --data PATH"),
    ("bench --numerics --data chat.jsonl", "by which precisions are compared, got none; give --eval-data or --val-fraction"),
    (f"{LINE} --shape tiny", "--shape: expected none beside --numerics, got tiny"),
    (f"{LINE} --precision fast", "--precision: expected none beside --numerics, got fast; all of them are compared"),
    (f"{LINE} --profile", "--profile: expected none beside --numerics"),
    (f"{LINE} --seed 9223372036854775806", "--seed: expected one with 2 seeds above it"),
    (f"{LINE} --batch 0", "Invalid value for '--batch' / '--batch-size': 0 is not in the range x>=1."),
    (f"{LINE} --rank 0", "Invalid value for '--rank' / '--r' / '--lora-r': 0 is not in the range x>=1."),
    ("bench --data chat.jsonl", "--data: expected --numerics beside it, got none; leave it out"),
    ("bench --seeds 3", "--seeds: expected --numerics beside it, got none; leave it out"),
])  # fmt: skip
def test_what_is_refused(place: Path, line: str, said: str) -> None:
    done = called(place, line.split())
    assert done.returncode == 2 and done.stdout == "", (done.returncode, done.stdout)
    assert said in " ".join(done.stderr.splitlines()[-1].split()), done.stderr


def test_one_of_each_has_no_plural(place: Path) -> None:
    line = LINE.replace("--steps 3", "--steps 1").replace("--batch 2", "--batch 1")
    done = called(place, f"{line} --seeds 1".split())
    assert done.returncode == 0 and "1 step of 1 sequence, rank 2, learning rate 0.001, 1 seed;" in done.stdout, done.stderr


def test_a_record_that_cannot_be_written_is_refused_before_the_runs(place: Path) -> None:
    (place / "taken/numerics.json").mkdir(parents=True)
    done = called(place, f"{LINE} --output-dir taken".split())
    assert done.returncode == 1 and "numerics.json: expected a file or a free name, got a folder" in done.stderr
    assert "run       " not in done.stderr


def test_a_signal_speaks_of_no_checkpoint_and_leaves_nothing(place: Path) -> None:
    line = LINE.replace("--steps 3", "--steps 9000")
    done = interrupted(place, [*line.split(), "--output-dir", "stopped"], "step ")
    said = done.stderr
    assert done.returncode == 130 and not list((place / "stopped").iterdir())
    assert re.search(r"^stopping after this step( \(about \d+ s\))?; press again to abandon$", said, re.M), said
    assert re.search(r"^stopped at step \d+; nothing of this run is kept$", said, re.M), said
    assert "checkpoint" not in said and "sav" not in said


def test_a_device_without_int8_says_so(fake: str, place: Path) -> None:
    words = [sys.executable, "-m", "lora_c", *LINE.split(), "--seeds", "1", "--device", fake]
    done = subprocess.run(words, cwd=place, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "left out  int8: precision: expected exact or fast on device fake, got int8" in done.stdout
    assert "verdict   fast" in done.stdout and "verdict   int8" not in done.stdout
