"""What a forecast says of memory: the unit of every figure, and the limit that would do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lora_c as lc
from lora_c.errors import ConfigError
from lora_c.training.memory import MemoryForecast, choose_recompute, forecast_model

TOKENS = 40_000  # so that activations outweigh what a device keeps for its products


@pytest.fixture
def model(tiny_model_dir: Path) -> lc.Model:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2)
    return model


def test_a_forecast_is_told_in_mebibytes_by_purpose() -> None:
    plan = MemoryForecast(
        base=3 << 20, parameters=1 << 19, gradients=0, optimizer=1 << 20, activations=2048 << 20, scratch=1 << 18
    )
    assert plan.total == (3 << 20) + (1 << 19) + (1 << 20) + (2048 << 20) + (1 << 18)
    said = "2,052.8 MiB forecast (base 3.0, trained 0.5, optimizer 1.0, activations 2,048.0, scratch 0.2)"
    assert plan.describe() == said


def test_what_is_trained_has_gradients_and_two_moments_in_float32(model: lc.Model) -> None:
    plan = forecast_model(model, TOKENS)
    trained = sum(parameter.size for parameter in model.trainable_parameters())
    assert (plan.parameters, plan.gradients, plan.optimizer) == (4 * trained, 4 * trained, 8 * trained)


def test_the_limit_that_an_error_names_is_enough(model: lc.Model) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_recompute(model, TOKENS, 1e-9)
    match = re.search(r"at least (\S+) GiB for micro-batches of 40,000 tokens .* got 1e-09;", str(caught.value))
    assert match is not None
    least = float(match[1])
    assert choose_recompute(model, TOKENS, 1.01 * least) == "layer"
    with pytest.raises(ConfigError):
        choose_recompute(model, TOKENS, 0.99 * least)
