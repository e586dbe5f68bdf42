"""LoRA+ against PEFT's optimizer, step by step (tests/golden/make_loraplus_golden.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_families import adapt, folder, golden, loss_and_gradients, relative

import lora_c as lc
from lora_c.training.optimizers import make_optimizer

RECORD = np.load(Path(__file__).parents[1] / "golden" / "loraplus.npz")
STEPS, LR, RATIO, DECAY = 5, 1e-2, 8.0, 0.1


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
def test_steps_are_those_of_peft(name: str, tmp_path: Path) -> None:
    record = golden(name)
    model = lc.load_model(folder(record, tmp_path / "model"))
    adapt(model, record)
    parameters = model.trainable_parameters()
    before = {p.name: p.read() for p in parameters}
    config = lc.TrainConfig(
        output_dir=str(tmp_path), method="lora", learning_rate=LR, weight_decay=DECAY, loraplus_lr_ratio=RATIO
    )
    optimizer = make_optimizer(config, parameters)
    losses = []
    for _ in range(STEPS):
        losses.append(loss_and_gradients(model, record["ids"]))
        optimizer.step(lr=LR)
    np.testing.assert_allclose(losses, RECORD[f"{name}.losses"], rtol=1e-4)
    for parameter in parameters:
        want, start = RECORD[f"{name}.{parameter.name}"], before[parameter.name]
        assert relative(parameter.read() - start, want - start) < 1e-3, parameter.name  # of what five steps moved
        assert relative(parameter.read(), want) < 1e-4, parameter.name
