"""The training loop on a real small checkpoint: loss falls, bits repeat, runs resume, errors are clear."""

import gc
import json
import os
import shutil
import signal

import numpy as np
import pytest
from device_values import skip_where_lacking

import lora_c as lc
from lora_c import _core
from lora_c.data import Dataset, Sample
from lora_c.errors import CheckpointError, ConfigError
from lora_c.notices import LoraCWarning
from lora_c.planning import subject_of_shape
from lora_c.training.trainer import Trainer


@pytest.fixture
def shakespeare(shared_data, stories, tmp_path):
    """A slice of real text, cut for the tokenizer of the model."""
    text = (shared_data("tinyshakespeare") / "input.txt").read_text(encoding="utf-8")[:20_000]
    path = tmp_path / "slice.txt"
    path.write_text(text, encoding="utf-8")
    return path


def make_trainer(stories, data, out, method="qlora", dropout=0.0, **options):
    quantize = "nf4" if method == "qlora" else None
    trainable = method if method in ("full", "head") else "none"
    model = lc.load_model(stories, quantize=quantize, trainable=trainable, progress=False)
    if method in ("lora", "qlora"):
        model.add_adapter(lc.LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, seed=1))
    dataset = lc.load_dataset(data, model.tokenizer, max_seq_length=64)
    train, held_out = dataset.split(0.1, seed=0)
    settings = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "max_steps": 6, "seed": 5} | options
    config = lc.TrainConfig(output_dir=str(out), method=method, **settings)
    return Trainer(model, train, config, held_out)


def trained_arrays(trainer):
    return [np.array(p.data) for p in trainer.parameters]


@pytest.mark.parametrize("method", ["qlora", "lora", "head", "full"])
def test_held_out_loss_falls_with_every_method(stories, shakespeare, tmp_path, method):
    trainer = make_trainer(stories, shakespeare, tmp_path / "out", method, max_steps=25, eval_steps=25)
    result = trainer.train()
    evals = [r["eval_loss"] for r in trainer.history if "eval_loss" in r]
    assert evals[-1] < evals[0] - 0.02
    assert result.steps == 25 and not result.interrupted
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss" in r for r in lines) == 25
    assert {"step", "loss", "learning_rate", "grad_norm", "tokens_per_second"} <= set(lines[-2])


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_bits_do_not_depend_on_threads(stories, shakespeare, tmp_path, dropout):
    before = _core.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 8):
            _core.set_num_threads(threads)
            trainer = make_trainer(stories, shakespeare, tmp_path / str(threads), max_steps=20, dropout=dropout)
            trainer.train()
            losses = [r["loss"] for r in trainer.history if "loss" in r]
            results.append((losses, trained_arrays(trainer)))
    finally:
        _core.set_num_threads(before)
    for losses, arrays in results[1:]:
        assert losses == results[0][0]
        assert all(np.array_equal(a, b) for a, b in zip(arrays, results[0][1], strict=True))


def test_recompute_gives_the_same_bits_in_less_memory(stories, shakespeare, tmp_path):
    runs = {}
    for recompute in ("none", "attention", "layer"):
        trainer = make_trainer(stories, shakespeare, tmp_path / recompute, recompute=recompute, dropout=0.1)
        trainer.train()
        with trainer.settings():
            runs[recompute] = (trained_arrays(trainer), trainer.model.decoder.arena_bytes(256))
    for recompute in ("attention", "layer"):
        assert all(np.array_equal(a, b) for a, b in zip(runs["none"][0], runs[recompute][0], strict=True))
    assert runs["layer"][1] < runs["none"][1] / 2 and runs["layer"][1] < runs["attention"][1] < runs["none"][1]


def test_interrupted_and_resumed_run_has_the_same_bits(stories, shakespeare, tmp_path):
    whole = make_trainer(stories, shakespeare, tmp_path / "whole", dropout=0.1)
    whole.train()
    first = make_trainer(stories, shakespeare, tmp_path / "parts", dropout=0.1, save_steps=3)
    first.train()
    assert (tmp_path / "parts" / "checkpoint-3" / "adapter_model.safetensors").is_file()
    second = make_trainer(stories, shakespeare, tmp_path / "parts", dropout=0.1)
    second.train(resume=True)
    assert all(np.array_equal(a, b) for a, b in zip(trained_arrays(whole), trained_arrays(second), strict=True))


def test_ctrl_c_in_the_middle_of_a_step_resumes_with_the_same_bits(stories, shakespeare, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs deaf to it
    whole = make_trainer(stories, shakespeare, tmp_path / "whole")
    whole.train()
    trainer = make_trainer(stories, shakespeare, tmp_path / "out")
    forward_backward = Trainer._forward_backward

    def interrupt(self, batch, grad_scale, dropout_step):
        if dropout_step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return forward_backward(self, batch, grad_scale, dropout_step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_forward_backward", interrupt)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 3"):
            trainer.train()
    result = trainer.result
    assert result.interrupted and result.steps == 3
    assert (tmp_path / "out" / "checkpoint-3" / "trainer_state.json").is_file()
    (tmp_path / "out" / "metrics.jsonl").write_text('{"step": 3}\n{"step": 4}\n')  # as a kill after the checkpoint leaves it
    resumed = make_trainer(stories, shakespeare, tmp_path / "out")
    resumed.train(resume=True)
    assert all(np.array_equal(a, b) for a, b in zip(trained_arrays(whole), trained_arrays(resumed), strict=True))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in lines if "loss" in r] == list(range(1, resumed.total_steps + 1))
    assert [r.get("tokens") for r in lines] == [r.get("tokens") for r in whole.history]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_accumulation_is_the_same_mathematics(stories, shakespeare, tmp_path):
    """4 x 1 and 1 x 4 sequences: equal up to the order of float32 sums (relative 1e-4 after 3 steps of AdamW)."""
    runs = []
    for size, accumulation in ((4, 1), (1, 4)):
        trainer = make_trainer(
            stories,
            shakespeare,
            tmp_path / f"{size}",
            max_steps=3,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        runs.append([r["loss"] for r in trainer.history if "loss" in r])
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-4)


def test_checkpoint_of_another_run_is_refused(stories, shakespeare, tmp_path):
    first = make_trainer(stories, shakespeare, tmp_path / "a", save_steps=3)
    first.train()
    other = make_trainer(stories, shakespeare, tmp_path / "b", method="head")
    with pytest.raises(CheckpointError, match="resume with the options"):
        other.train(resume=tmp_path / "a" / "checkpoint-3")
    with pytest.raises(CheckpointError, match="expected a checkpoint folder"):
        other.train(resume=tmp_path / "nothing")


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(stories, shakespeare, tmp_path, monkeypatch):
    whole = make_trainer(stories, shakespeare, tmp_path / "whole")
    whole.train()
    trainer = make_trainer(stories, shakespeare, tmp_path / "out", save_steps=2)
    real = os.fsync

    def full(handle):
        if trainer.checkpoints:
            raise OSError(28, "No space left on device")
        return real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(LoraCWarning, match="no checkpoint of step [46]: .*checkpoint-[46]: expected room on the disk, got No"):
        result = trainer.train()
    assert [line.partition(":")[0] for line in result.unsaved] == ["step 4", "step 6"]
    assert all(np.array_equal(a, b) for a, b in zip(trained_arrays(whole), trained_arrays(trainer), strict=True))
    monkeypatch.undo()
    left = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert "checkpoint-2" in left and not any("part" in name for name in left)
    resumed = make_trainer(stories, shakespeare, tmp_path / "out")
    assert resumed.train(resume=True).steps == 6
    assert all(np.array_equal(a, b) for a, b in zip(trained_arrays(whole), trained_arrays(resumed), strict=True))


def test_frozen_model_is_refused(stories, tmp_path):
    model = lc.load_model(stories, progress=False)
    data = Dataset([Sample(np.arange(4, dtype=np.int32), np.ones(4, np.float32))])
    with pytest.raises(ConfigError, match="at least one trainable parameter"):
        Trainer(model, data, lc.TrainConfig(output_dir=str(tmp_path)))


def _live_without_scratch():
    report = _core.memory_report(os.environ.get("LORA_C_DEVICE", "cpu"))
    return report["total"]["live"] - report["scratch"]["live"]


def test_forecast_is_near_the_measured_peak(stories, shakespeare, tmp_path):
    from lora_c.training.memory import forecast

    gc.collect()
    of_others = _live_without_scratch()  # what other tests of this process still hold
    trainer = make_trainer(stories, shakespeare, tmp_path / "out", max_steps=3)
    plan = forecast(trainer)
    result = trainer.train()
    without_scratch = result.peak_memory_bytes - _core.memory_report(trainer.model.device)["scratch"]["peak"]
    assert without_scratch - of_others <= 1.1 * (plan.total - plan.scratch)
    assert plan.total <= result.peak_memory_bytes + plan.scratch
    shutil.rmtree(tmp_path / "out")


def test_auto_recomputes_only_where_the_limit_asks_for_it(stories, shakespeare, tmp_path):
    from lora_c.training.memory import forecast

    roomy = make_trainer(stories, shakespeare, tmp_path / "roomy", recompute="auto")
    assert roomy.recompute == "none"
    plan = forecast(roomy)  # a device keeps memory for its products, which no limit on activations touches
    limit, activations = plan.total / 2**30, plan.activations / 2**30
    for share, chosen in ((1.2, "none"), (-0.1, "attention"), (-0.5, "layer")):
        asked = limit * share if share > 0 else limit + share * activations
        within = make_trainer(stories, shakespeare, tmp_path / chosen, recompute="auto", memory_limit=asked)
        assert within.recompute == chosen
        assert forecast(within).total / 2**30 <= asked
    with pytest.raises(ConfigError, match=r"memory_limit: expected at least .* with recompute=layer\), got"):
        make_trainer(stories, shakespeare, tmp_path / "nothing", recompute="auto", memory_limit=limit - activations)


def test_what_is_free_decides_no_result(stories, shakespeare, tmp_path, monkeypatch):
    """What is computed again of rounded activations has other bits, and auto would compute it again on a full machine only."""
    monkeypatch.setattr(_core, "memory_info", lambda device: {"free": 1 << 20, "total": 1 << 40})
    chosen = {"float32": "layer", "bfloat16": "none"}
    for dtype, recompute in chosen.items():
        assert make_trainer(stories, shakespeare, tmp_path / dtype, activation_dtype=dtype).recompute == recompute
    limited = make_trainer(stories, shakespeare, tmp_path / "limited", activation_dtype="bfloat16", memory_limit="10GB")
    assert limited.recompute == "none"
    plan = subject_of_shape("smollm2-135m", lc.TrainConfig(), lc.LoraConfig())
    assert [plan.with_config(lc.TrainConfig(activation_dtype=dtype)).recompute_within(1 << 28) for dtype in chosen] == [
        "layer",
        "none",
    ]


@pytest.mark.parametrize(("narrow", "share"), [("bfloat16", 0.8), ("int8", 0.7)])
def test_rounded_activations_take_less_memory_and_train_alike(stories, shakespeare, tmp_path, narrow, share):
    results = {}
    for dtype in ("float32", narrow):
        trainer = make_trainer(stories, shakespeare, tmp_path / dtype, activation_dtype=dtype, max_steps=15)
        skip_where_lacking(trainer.model.device, narrow)
        trainer.train()
        losses = [r["loss"] for r in trainer.history if "loss" in r]
        with trainer.settings():
            results[dtype] = losses, trainer.model.decoder.arena_bytes(256)
    exact, rounded = results["float32"], results[narrow]
    assert rounded[0][0] == exact[0][0] and rounded[0] != exact[0]
    np.testing.assert_allclose(rounded[0], exact[0], rtol=2e-3)
    assert rounded[1] < share * exact[1]
