"""Memory of activations is freed when it is asked for, and when passes become small; dropout needs a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lora_c as lc
from lora_c import _core


def live(model: lc.Model) -> int:
    return _core.memory_report(model.device)["activations"]["live"]


def one_pass(model: lc.Model, n: int, **options: int) -> float:
    ids = (np.arange(n) % 60 + 3).astype(np.int32)
    return model.decoder.forward_backward(ids, [0, n], ids, np.ones(n, np.float32), **options)


@pytest.fixture
def model(tiny_model_dir: Path) -> lc.Model:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2)
    return model


def test_activations_are_freed_when_asked_for(model: lc.Model) -> None:
    before = live(model)
    loss = one_pass(model, 60)
    assert live(model) - before == model.decoder.arena_bytes(60)
    model.decoder.free_activations()
    assert live(model) == before
    model.decoder.free_activations()
    assert one_pass(model, 60) == loss and live(model) - before == model.decoder.arena_bytes(60)


def test_activations_shrink_after_some_small_passes(model: lc.Model) -> None:
    before = live(model)
    loss = one_pass(model, 60)
    for _ in range(40):  # a small batch now and then changes nothing
        one_pass(model, 8)
        one_pass(model, 60)
    assert live(model) - before == model.decoder.arena_bytes(60)
    for n in (8, 20, *[8] * 14):
        one_pass(model, n)
    assert live(model) - before == model.decoder.arena_bytes(20)  # what the largest of them needed
    assert one_pass(model, 60) == loss


def test_dropout_without_a_step_is_refused(tiny_model_dir: Path) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2, lora_dropout=0.1)
    with pytest.raises(ValueError, match="dropout_step: expected the number of the training step with lora_dropout"):
        one_pass(model, 20)
    assert np.isfinite(one_pass(model, 20, dropout_step=0))
    layer, x = lc.LoRALinear(np.ones((4, 6), np.float32), lora_dropout=0.5), np.ones((3, 6), np.float32)
    for call in (lambda: layer(x, training=True), lambda: layer.backward(np.ones((3, 4), np.float32), x, training=True)):
        with pytest.raises(ValueError, match="step: expected the number of the training step with lora_dropout"):
            call()
    assert layer(x).shape == layer(x, training=True, step=0).shape == (3, 4)


def test_a_layer_has_the_defaults_of_a_configuration() -> None:
    layer, config = lc.LoRALinear(np.ones((32, 32), np.float32)), lc.LoraConfig()
    assert (layer.r, layer.lora_alpha, layer.lora_dropout) == (config.r, config.lora_alpha, config.lora_dropout)
    wider = lc.LoRALinear(np.ones((32, 32), np.float32), r=16)
    assert wider.scaling == lc.LoraConfig(r=16).lora_alpha / 16
