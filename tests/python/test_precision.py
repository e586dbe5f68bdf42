"""precision=fast: the settings, what it may change and what not."""

import os
import subprocess
import sys

import numpy as np
import pytest

import lora_c as lc
from lora_c.checkpoints.model_names import BASE_MODEL
from lora_c.demo.run import dataset
from lora_c.demo.world import task
from lora_c.errors import ConfigError
from lora_c.training.trainer import Trainer


@pytest.fixture
def fast():
    lc.set_precision("fast")
    yield
    lc.set_precision("exact")


def demo_trainer(out, precision, steps):
    model = lc.load_model(BASE_MODEL, quantize="nf4", progress=False)
    model.add_adapter(lc.LoraConfig(r=16, lora_alpha=32))
    train, _ = task(0, 64, 1)
    config = lc.TrainConfig(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-3, precision=precision
    )
    return Trainer(model, dataset(model, train), config)


def test_settings():
    assert lc.get_precision() == "exact"
    with pytest.raises(ValueError, match="name: expected 'exact', 'fast' or 'int8', got 'half'"):
        lc.set_precision("half")
    with pytest.raises(ConfigError, match="precision"):
        lc.TrainConfig(precision="half")
    assert lc.TrainConfig().precision == "fast"
    decoder = lc.load_model(BASE_MODEL, progress=False).decoder
    assert decoder.precision == "exact"
    decoder.precision = "fast"
    assert decoder.precision == "fast" and lc.get_precision() == "exact"
    with pytest.raises(ValueError, match="precision: expected 'exact', 'fast' or 'int8'"):
        decoder.precision = 3


@pytest.mark.parametrize(("value", "line"), [("fast", "fast"), ("", "exact"), ("half", "LORA_C_PRECISION: expected")])
def test_environment_variable(value, line):
    command = [sys.executable, "-c", "import lora_c; print(lora_c.get_precision())"]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LORA_C_PRECISION": value})
    assert line in run.stdout + run.stderr


def test_a_layer_is_within_the_error_of_bfloat16_operands(fast):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 256), np.float32)
    base = lc.NF4Tensor.quantize(rng.standard_normal((96, 256), np.float32))
    layer = lc.LoRALinear(base, r=8, lora_alpha=16)  # B is zero: the base alone
    w = base.dequantize().astype(np.float64)
    want, magnitude = x.astype(np.float64) @ w.T, np.abs(x).astype(np.float64) @ np.abs(w).T
    error = np.abs(layer.forward(x) - want)
    assert np.all(error <= magnitude * (2.0**-7 + 2.0**-16 + 300 * 2.0**-24))


def test_a_decoder_keeps_its_precision_to_itself(fast):
    lc.set_precision("exact")
    decoder = lc.load_model(BASE_MODEL, progress=False).decoder
    ids = np.arange(3, 67, dtype=np.int32)
    exact = decoder.logits(ids)
    decoder.precision = "fast"
    fast_logits = decoder.logits(ids)
    assert np.abs(fast_logits - exact).max() <= 0.05 * np.abs(exact).max()
    decoder.precision = "exact"
    assert np.array_equal(decoder.logits(ids), exact)


def test_generation_is_fast_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("LORA_C_PRECISION", raising=False)
    model = lc.load_model(BASE_MODEL, quantize="nf4", progress=False)
    used = []

    class Recorder:
        """The decoder, and the precision of each of its decode calls."""

        def __getattr__(self, name):
            return getattr(decoder, name)

        def decode(self, cache, ids, **options):
            used.append(options["precision"])
            return decoder.decode(cache, ids, **options)

    decoder, model.decoder = model.decoder, Recorder()
    options = {"max_new_tokens": 3, "ignore_eos": True}
    cases = [(None, None, "fast"), (None, "exact", "exact"), ("exact", None, "exact"), ("exact", "fast", "fast")]
    for environment, argument, want in cases:
        if environment:
            monkeypatch.setenv("LORA_C_PRECISION", environment)
        for prompt in ([5, 6], [[5, 6], [7, 8, 9]]):
            used.clear()
            model.generate(prompt, precision=argument, **options)
            assert used and set(used) == {want}
    assert decoder.precision == "exact"
    with pytest.raises(ConfigError, match="precision"):
        model.generate([5], precision="half")


def test_decode_in_a_precision_of_its_own():
    decoder = lc.load_model(BASE_MODEL, quantize="nf4", progress=False).decoder
    rows = {}
    for precision in ("exact", "fast", None):
        cache = decoder.new_cache(8, 3)
        decoder.decode(cache, [5, 6, 7], precision=precision)
        first = decoder.decode(cache, [8], precision=precision)[0]
        # together with other sequences, the bits of the token alone
        decoder.decode(cache, [5, 6, 7], sequences=[2], precision=precision)
        both = decoder.decode(cache, [9, 8], cu_seqlens=[0, 1, 2], sequences=[1, 2], precision=precision)
        np.testing.assert_array_equal(both[1], first)
        rows[precision] = first
    np.testing.assert_array_equal(rows[None], rows["exact"])
    scale = np.abs(rows["exact"]).max()
    assert np.abs(rows["fast"] - rows["exact"]).max() <= 0.05 * scale
    with pytest.raises(ValueError, match="precision: expected 'exact', 'fast' or 'int8', got 'half'"):
        decoder.decode(cache, [8], precision="half")


def test_training_curves_agree(tmp_path):
    curves = {}
    for precision in ("exact", "fast"):
        trainer = demo_trainer(tmp_path / precision, precision, steps=200)
        trainer.train()
        curves[precision] = np.array([r["loss"] for r in trainer.history if "loss" in r])
    assert len(curves["exact"]) == 200
    means = {name: curve.reshape(10, 20).mean(axis=1) for name, curve in curves.items()}
    assert means["exact"][-1] < 0.8 * means["exact"][0]  # it learns
    np.testing.assert_allclose(means["fast"], means["exact"], rtol=0.01)
