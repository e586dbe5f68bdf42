"""The measurements of a training step: costs that add up, memory as forecast, the command."""

import subprocess
import sys

import numpy as np
import pytest

import lora_c as lc
from lora_c import _core
from lora_c.bench import StepBench, profile_table
from lora_c.errors import ConfigError

STEP_OPERATIONS = {
    "linear forward", "linear backward", "adapter gradient", "attention forward", "attention backward",
    "head and loss", "norm forward", "norm backward", "rope", "activation forward", "activation backward", "embedding",
    "optimizer",
}  # fmt: skip


def make_bench(stories, **shape):
    model = lc.load_model(stories, quantize="nf4", progress=False)
    model.add_adapter(lc.LoraConfig(r=8, target_modules="all-linear"))
    return StepBench(model, **shape)


def test_costs_of_a_step_are_complete_and_add_up(stories):
    measured = make_bench(stories, batch=2, length=96).measure(3, profile=True)
    assert set(measured.profile) == STEP_OPERATIONS
    whole = sum(measured.seconds)
    accounted = sum(cost["seconds"] for cost in measured.profile.values())
    assert 0.5 * whole < accounted <= whole
    config = lc.load_model(stories, progress=False).config
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    kv = width * config["num_key_value_heads"] // config["num_attention_heads"]
    mid = config["intermediate_size"]
    weights = layers * (2 * width * width + 2 * width * kv + 3 * width * mid)
    low_rank = layers * 8 * (2 * 2 * width + 2 * (width + kv) + 3 * (width + mid))
    assert measured.profile["linear forward"]["flops"] == 3 * 2 * (2 * 96) * (weights + low_rank)
    assert measured.profile["linear forward"]["calls"] == 3 * 4 * layers  # q, k, v share one; so do gate and up
    table = profile_table(measured, _core.fma_peak())
    assert all(name in table for name in STEP_OPERATIONS | {"everything else"})


def test_profiling_off_records_nothing_and_changes_no_bit(stories):
    losses = []
    for profile in (False, True):
        bench = make_bench(stories, batch=1, length=32)
        bench.measure(2, profile=profile)
        losses.append(bench.step())
    assert losses[0] == losses[1]
    _core.set_profiling(True)
    _core.set_profiling(False)
    make_bench(stories, batch=1, length=32).step()
    assert _core.profile_report() == {}


def test_steps_learn_the_batch(stories):
    bench = make_bench(stories, batch=1, length=64)
    losses = [bench.step() for _ in range(8)]
    assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]


@pytest.mark.parametrize("shape, name", [({"batch": 1, "length": 1_000_000}, "length"), ({"batch": 0, "length": 16}, "batch")])
def test_impossible_sizes_are_refused(stories, shape, name):
    with pytest.raises(ConfigError, match=f"^{name}: expected"):
        make_bench(stories, **shape)


def test_the_command(stories):
    command = [sys.executable, "-m", "lora_c", "bench", "--model", str(stories), "--length", "64", "--steps", "1", "--profile"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout and "attention backward" in done.stdout
