"""The measurements of a training step: costs that add up, memory as forecast, synthetic models, the command."""

import json
import subprocess
import sys

import numpy as np
import pytest

import lora_c as lc
from lora_c import _core
from lora_c.bench import DecodeBench, StepBench, StepMeasurement, profile_table
from lora_c.bench_shapes import SHAPES, normals, synthetic_model
from lora_c.errors import ConfigError
from lora_c.families.architectures import architecture_of
from lora_c.families.shapes import SHAPES as PUBLISHED
from lora_c.weights.quantization import NF4, Quantization

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


def parameters_of(shape):
    return sum(int(np.prod(spec.shape)) for spec in architecture_of(SHAPES[shape].config).weights())


def test_shapes_are_those_that_are_published_and_one_for_tests():
    assert set(SHAPES) == {"tiny", *PUBLISHED}


def test_synthetic_numbers_are_normal_and_those_of_their_array_alone():
    long = normals(3, (5, 1 << 20), 0.5)  # more than one chunk
    assert abs(long.mean()) < 1e-3 and abs(long.std() - 0.5) < 1e-3
    assert abs(np.mean(np.abs(long) < 0.5) - 0.6827) < 1e-3  # one standard deviation
    flat = long.reshape(-1)
    assert len(np.unique(flat[[0, 1 << 22]])) == 2 and not np.array_equal(flat[: 1 << 20], flat[1 << 22 :])
    assert np.array_equal(normals(3, (5, 1 << 20), 0.5), long)
    assert not np.array_equal(normals(4, (8,), 0.5), flat[:8])


def test_a_shape_keeps_its_weights_as_the_table_says():
    model = synthetic_model("tiny", Quantization("fp4", 64, True), "cpu")
    forms = {name: getattr(weight, "quant_type", None) or str(weight.dtype) for name, weight in model.weights.items()}
    assert forms["embed_tokens"] == "bfloat16" and forms["lm_head"] == "fp4" and forms["norm"] == "float32"
    assert {form for name, form in forms.items() if "_proj" in name} == {"fp4"}
    assert model.num_parameters() == parameters_of("tiny") and not model.has_tokenizer
    plain = synthetic_model("tiny", None, "cpu")
    assert not plain.is_quantized and str(plain.weights["layers.0.q_proj"].dtype) == "bfloat16"


def test_layers_share_the_memory_of_the_host_where_the_device_has_its_own(fake):
    own, shared = synthetic_model("tiny", NF4, "cpu"), synthetic_model("tiny", NF4, fake)
    first, second = "layers.0.up_proj", "layers.1.up_proj"
    assert shared.weights[first] is shared.weights[second]
    assert own.weights[first] is not own.weights[second]
    assert not np.array_equal(own.weights[first].codes, own.weights[second].codes)
    assert np.array_equal(own.weights[first].codes, shared.weights[first].codes)
    live = {model.device: _core.memory_report(model.device)["base weights"]["live"] for model in (own, shared)}
    layers = sum(weight.nbytes for name, weight in shared.weights.items() if name.startswith("layers."))
    assert live[fake] >= layers  # which counts a shared array once a layer, as the device has to


def test_a_shape_trains_and_decodes_with_the_same_bits_on_another_device(fake):
    results = []
    for device in ("cpu", fake):
        model = synthetic_model("tiny", NF4, device, share_layers=True)
        model.add_adapter(lc.LoraConfig(r=4, target_modules="all-linear"))
        bench = StepBench(model, batch=2, length=24)
        losses = [bench.step() for _ in range(3)]
        measured = DecodeBench(model, tokens=5, prompt=7).measure()
        assert (measured.prompt_tokens, len(measured.seconds)) == (7, 5) and measured.peak_bytes > 0
        results.append(losses)
    assert results[0] == results[1] and results[0][2] < results[0][0]
    assert abs(results[0][0] - np.log(512)) < 0.5  # of a model that knows nothing


def test_decoding_has_a_prompt_that_fits(stories):
    model = lc.load_model(stories, quantize="nf4", progress=False)
    limit = model.context_length
    assert len(DecodeBench(model, limit - 3).ids) == 3
    for tokens, prompt in ((0, 4), (4, 0), (limit, None), (10, limit - 9)):
        with pytest.raises(ConfigError, match="^decode: expected 1 to"):
            DecodeBench(model, tokens, prompt)


@pytest.mark.parametrize("device", ["cpu", "fake"])
def test_the_command_with_a_shape(fake, device):
    command = [sys.executable, "-m", "lora_c", "bench", "--shape", "tiny", "--batch", "1", "--length", "32", "--steps", "2"]
    command += ["--decode", "6", "--recompute", "layer", "--json", "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert (values["shape"], values["device"], values["recompute"]) == ("tiny", device, "layer")
    assert values["peak_memory_bytes"] > 0 and len(values["step_seconds"]) == 2
    decode = values["decode"]
    assert (decode["tokens"], decode["prompt_tokens"]) == (6, 32) and decode["tokens_per_second"] > 0
    done = subprocess.run([*command, "--model", "demo"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "--shape: expected no model beside it" in done.stderr
