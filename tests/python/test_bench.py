"""The measurements of a training step: costs that add up, memory as forecast, the command."""

import subprocess
import sys

import numpy as np
import pytest

import lora_c as lc
from lora_c import _core
from lora_c.bench import StepBench, StepMeasurement, profile_table
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


@pytest.mark.usefixtures("on_cpu")  # which alone accounts for the parts of linear layers
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


def test_figures_are_told_in_their_units():
    """Figures worked out by hand: three steps of 1000 tokens in 1.75 s on a machine of 100 GFLOP/s."""
    profile = {
        "rope": {"seconds": 0.35, "calls": 9, "flops": 7e9, "bytes": 2.1e9},
        "norm forward": {"seconds": 0.7, "calls": 30, "flops": 0.0, "bytes": 1.4e9},
    }
    measured = StepMeasurement(1000, [0.5, 0.25, 1.0], 3 << 20, 1200 << 20, 3600, profile)
    assert measured.describe() == (
        "2,000 tokens/s (best 4,000), 0.500 s a step of 1,000 tokens, "
        "peak 1,200.0 MiB (forecast 3.0), 1,200 page faults a step"
    )
    assert [line.split() for line in profile_table(measured, 100e9).splitlines()[1:4]] == [
        ["norm", "forward", "10", "233.33", "40.0", "%", "466.7", "2.0"],
        ["rope", "3", "116.67", "20.0", "%", "20.0", "20", "%", "700.0", "6.0"],
        ["everything", "else", "233.33", "40.0", "%"],
    ]
    assert profile_table(measured, 100e9).endswith("the whole step: 4.0 GFLOP/s, 4 % of this machine's 100 (float32 FMA)")
    assert profile_table(measured, 0.0, columns=40).splitlines()[2].split() == ["rope", "116.67", "20.0", "%", "20.0"]


@pytest.mark.parametrize("shape, name", [({"batch": 1, "length": 1_000_000}, "length"), ({"batch": 0, "length": 16}, "batch")])
def test_impossible_sizes_are_refused(stories, shape, name):
    with pytest.raises(ConfigError, match=f"^{name}: expected"):
        make_bench(stories, **shape)


def test_the_command(stories):
    command = [sys.executable, "-m", "lora_c", "bench", "--model", str(stories), "--length", "64", "--steps", "1", "--profile"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout and "attention backward" in done.stdout
