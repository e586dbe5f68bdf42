"""The CUDA plug-in's own kernels, on emulated threads: training, decoding and resuming beside the CPU, in both precisions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from bits.cases import ADAPTERS, batch, family_folders, fill, uniform

import lora_c as lc
from lora_c import _core
from lora_c.data import Dataset, Sample
from lora_c.model.model import Model
from lora_c.training.trainer import Trainer

TOKENS, STEPS = 40, 20
# Bounds of docs/NUMERICS.md: of a loss relative to it, and of the cosine of gradients.
LOSS = {"exact": 1e-5, "fast": 1e-2}
COSINE = {"exact": 1 - 1e-6, "fast": 0.999}
BASES: dict[str, dict[str, Any]] = {
    "float32": {}, "bfloat16": {"dtype": "bfloat16"}, "nf4": {"quantize": "nf4", "block_size": 32},
    "q8_0": {"quantize": "q8_0"},
}  # fmt: skip


@pytest.fixture
def turing(shim: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A GPU whose products take float16, not bfloat16."""
    monkeypatch.setenv("SHIM_COMPUTE", "7.5")
    monkeypatch.setenv("SHIM_DEVICES", "3")  # of which the last is in no other test's hands
    return f"{shim}:2"


@pytest.fixture
def pair(make_model: Callable[..., Path], shim: str) -> Callable[..., tuple[Model, Model]]:
    """The tiny model on the CPU and on the shim, with the same adapter."""
    folder = make_model()

    def load(adapter: dict[str, Any] | None = None, precision: str = "exact", **options: Any) -> tuple[Model, Model]:
        models = []
        for device in ("cpu", shim):
            model = lc.load_model(folder, progress=False, device=device, **options)
            if adapter is not None:
                model.add_adapter(**adapter)
                fill(model)
            model.decoder.precision = precision if device == shim else "exact"  # type: ignore[assignment]
            models.append(model)
        return models[0], models[1]

    return load


def gradients(model: Model, grad_scale: float = 1) -> tuple[float, np.ndarray[Any, Any]]:
    """The loss of a batch, and all gradients behind each other, times grad_scale."""
    ids, cu, targets, weight = batch(model.decoder.config["vocab_size"], TOKENS)
    parameters = model.trainable_parameters()
    for parameter in parameters:
        parameter.zero_grad()
    scale = grad_scale / float(weight.sum())
    loss = model.decoder.forward_backward(ids, cu, targets, weight, grad_scale=scale, dropout_step=3)
    found = [np.ravel(grad) for parameter in parameters if (grad := parameter.grad) is not None]
    return loss, np.concatenate(found).astype(np.float64)


def cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.filterwarnings("ignore:2 of 14 matrices .down_proj. stay as they are")
@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_gradients(pair: Callable[..., tuple[Model, Model]], adapter: str, base: str, precision: str) -> None:
    cpu, gpu = pair(ADAPTERS[adapter], precision, **BASES[base])
    (loss, wanted), (got_loss, got) = gradients(cpu), gradients(gpu)
    assert got_loss == pytest.approx(loss, rel=LOSS[precision]) and cosine(got, wanted) > COSINE[precision]
    again = gradients(gpu)
    assert again[0] == got_loss and np.array_equal(again[1], got)  # the same bits twice


KINDS: dict[str, Any] = {
    "ia3": lc.IA3Config(), "ia3_everywhere": lc.IA3Config(target_modules=["q_proj", "o_proj", "up_proj", "down_proj"]),
    "bottleneck": lc.BottleneckConfig(), "prefix": lc.PrefixTuningConfig(num_virtual_tokens=3),
    "prompt": lc.PromptTuningConfig(num_virtual_tokens=3),
}  # fmt: skip


def add_kind(model: Model, config: Any) -> None:
    """An adapter none of whose gradients is zero."""
    model.add_adapter(config)
    for i, parameter in enumerate(model.trainable_parameters()):
        parameter.write(parameter.data + uniform(3000 + i, *parameter.shape, scale=0.1))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_other_kinds(pair: Callable[..., tuple[Model, Model]], kind: str) -> None:
    """Whichever of their activations are bfloat16, and the same bits where they are computed again."""
    models = pair(precision="fast")
    for model in models:
        add_kind(model, KINDS[kind])
    (loss, wanted), (got_loss, got) = (gradients(model) for model in models)
    assert got_loss == pytest.approx(loss, rel=LOSS["fast"]) and cosine(got, wanted) > COSINE["fast"]
    models[1].decoder.recompute = "layer"
    again = gradients(models[1])
    assert again[0] == got_loss and np.array_equal(again[1], got)


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "olmo2", "phi3", "qwen3"])
def test_gradients_of_families(tmp_path: Path, shim: str, family: str) -> None:
    """Norms at other places, biases, an MLP without gate, soft caps and windows, in bfloat16."""
    folder = dict(family_folders(tmp_path))[f"{family}/float32"]
    found = []
    for device, precision in (("cpu", "exact"), (shim, "fast")):
        model = lc.load_model(folder, progress=False, device=device)
        model.add_adapter(**ADAPTERS["lora"])
        fill(model)
        model.decoder.precision = precision  # type: ignore[assignment]
        found.append(gradients(model))
    assert found[1][0] == pytest.approx(found[0][0], rel=LOSS["fast"]) and cosine(found[1][1], found[0][1]) > COSINE["fast"]
    for recompute, kept in (("layer", "float32"), ("none", "bfloat16")):
        model.decoder.recompute, model.decoder.activation_dtype = recompute, kept  # type: ignore[assignment]
        loss, again = gradients(model)
        assert loss == found[1][0]
        assert np.array_equal(again, found[1][1]) if recompute == "layer" else cosine(again, found[1][1]) > COSINE["fast"]


def test_what_only_products_read_has_16_bits(pair: Callable[..., tuple[Model, Model]]) -> None:
    """The arena is smaller by half of each attention output, but for what rows lend; few tokens stay as they were."""
    _, gpu = pair(ADAPTERS["lora"], "fast")
    config, sizes = gpu.decoder.config, {}
    for precision in ("exact", "fast"):
        gpu.decoder.precision = precision  # type: ignore[assignment]
        sizes[precision] = [gpu.decoder.arena_bytes(n, training=True) for n in (16, 2048)]
        before = _core.memory_report(gpu.device)["activations"]["live"]
        gradients(gpu)
        held = _core.memory_report(gpu.device)["activations"]["live"] - before
        assert held == gpu.decoder.arena_bytes(TOKENS, training=True)
        gpu.decoder.free_activations()
    width = config["num_attention_heads"] * config["head_dim"]
    assert sizes["exact"][0] == sizes["fast"][0]
    lent, layers = 8, config["num_hidden_layers"]  # the rank, in eights
    most = 2 * (width - lent) * layers  # bytes a token
    least = most - 2 * 2 * lent  # of the gradients of gate and up, which lie where h does
    assert least <= (sizes["exact"][1] - sizes["fast"][1]) / 2048 <= most


def test_float16_is_nothing_to_keep_activations_in(make_model: Callable[..., Path], turing: str) -> None:
    """GPUs without bfloat16 products: float32 until the operands are rounded."""
    model = lc.load_model(make_model(), progress=False, device=turing)
    model.add_adapter(**ADAPTERS["lora"])
    sizes = []
    for model.decoder.precision in ("exact", "fast"):
        sizes.append(model.decoder.arena_bytes(2048, training=True))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("grad_scale", [1.0, 1e-6, 1e6])
@pytest.mark.parametrize("kind", ["lora", "dora", "nf4", "full"])
def test_gradients_of_any_size_pass_through_float16(
    make_model: Callable[..., Path], turing: str, kind: str, grad_scale: float
) -> None:
    folder, found = make_model(), []
    options = BASES["nf4"] if kind == "nf4" else {"trainable": "full"} if kind == "full" else {}
    for device, precision in (("cpu", "exact"), (turing, "fast")):
        model = lc.load_model(folder, progress=False, device=device, **options)
        if kind != "full":
            model.add_adapter(**ADAPTERS["dora" if kind == "dora" else "lora"])
            fill(model)
        model.decoder.precision = precision  # type: ignore[assignment]
        found.append(gradients(model, grad_scale))
    assert found[1][0] == pytest.approx(found[0][0], rel=LOSS["fast"]) and cosine(found[1][1], found[0][1]) > COSINE["fast"]
    again = gradients(model, grad_scale)
    assert again[0] == found[1][0] and np.array_equal(again[1], found[1][1])  # the same bits twice
    assert not np.array_equal(found[1][1], found[0][1])


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_values_that_are_not_finite_are_found(make_model: Callable[..., Path], shim: str, precision: str) -> None:
    model = lc.load_model(make_model(), progress=False, device=shim, trainable="full")
    model.decoder.precision = precision  # type: ignore[assignment]
    plain = gradients(model)[0]
    model.decoder.watching = True
    assert gradients(model)[0] == plain and model.decoder.first_nonfinite is None
    norm = next(p for p in model.trainable_parameters() if "layers.1.post_attention_layernorm" in p.name)
    weight = norm.data.copy()
    weight[5] = np.inf
    norm.write(weight)
    gradients(model)
    found = model.decoder.first_nonfinite
    assert found is not None and (found["operation"], found["result"], found["layer"]) == ("norm_forward", "y", 1)
    assert (found["weight"], found["row"], found["column"]) == ("post_attention_layernorm", 0, 5)


STEPPED: dict[str, Any] = {"r": 4, "lora_dropout": 0.1}


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("method", ["lora", "qlora", "full", "recompute"])
def test_twenty_steps(pair: Callable[..., tuple[Model, Model]], tmp_path: Path, method: str, precision: str) -> None:
    options: dict[str, Any] = {"trainable": "full"} if method == "full" else BASES["nf4"] if method == "qlora" else {}
    models = pair(None if method == "full" else STEPPED, precision, **options)
    check_steps(models, precision, method, tmp_path)


def test_twenty_steps_in_float16(make_model: Callable[..., Path], turing: str, tmp_path: Path) -> None:
    folder, models = make_model(), []
    for device in ("cpu", turing):
        model = lc.load_model(folder, progress=False, device=device)
        model.add_adapter(**STEPPED)
        fill(model)
        models.append(model)
    check_steps((models[0], models[1]), "fast", "lora", tmp_path)


def check_steps(models: tuple[Model, Model], precision: str, method: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, 60, 12).astype(np.int32) for _ in range(12)]
    data = Dataset([Sample(i, np.ones(len(i), np.float32)) for i in ids])
    losses = []
    for model, of_model in zip(models, ("exact", precision), strict=True):
        config = lc.TrainConfig(
            method="lora" if method == "recompute" else method, max_steps=STEPS, per_device_train_batch_size=2,
            learning_rate=1e-2, precision=of_model, recompute="layer" if method == "recompute" else "none", save_steps=0,
            output_dir=str(tmp_path / model.device.replace(":", "_")),
        )  # fmt: skip
        trainer = Trainer(model, data, config)
        trainer.train()
        losses.append([record["loss"] for record in trainer.history if "loss" in record])
    assert len(losses[0]) == STEPS
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if precision == "exact" else LOSS["fast"])


def test_a_token_has_the_bits_that_it_gets_alone(pair: Callable[..., tuple[Model, Model]]) -> None:
    _, gpu = pair(ADAPTERS["lora"])
    ids = batch(gpu.decoder.config["vocab_size"], TOKENS)[0]
    prompts = [ids[20:25], ids[:10], ids[25:32]]
    alone = gpu.decoder.new_cache(TOKENS)
    gpu.decoder.decode(alone, prompts[1])
    expected = gpu.decoder.decode(alone, ids[10:11])
    together = gpu.decoder.new_cache(TOKENS, 3)
    for i, prompt in enumerate(prompts):
        gpu.decoder.decode(together, prompt, cu_seqlens=np.array([0, len(prompt)], np.int32), sequences=[i])
    one_each = np.arange(4, dtype=np.int32)
    got = gpu.decoder.decode(together, ids[[30, 10, 31]], cu_seqlens=one_each, sequences=[0, 1, 2])
    assert np.array_equal(got[1], expected[0])


def test_answers_are_the_cpus(pair: Callable[..., tuple[Model, Model]]) -> None:
    cpu, gpu = pair(ADAPTERS["lora"])
    texts = ["w3 w4 w5", "w6", "w7 w8"]
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "precision": "exact"}
    assert gpu.generate(texts, **options) == cpu.generate(texts, **options)


def test_two_gpus_in_turn(make_model: Callable[..., Path], shim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is made on its own GPU, whichever the thread used before."""
    monkeypatch.setenv("SHIM_DEVICES", "2")
    folder, found = make_model(), []
    models = [
        lc.load_model(folder, progress=False, device=device, quantize="nf4", block_size=32) for device in (shim, f"{shim}:1")
    ]
    for model in models:
        model.add_adapter(**ADAPTERS["lora"])
        fill(model)
    for _ in range(2):
        found.append([gradients(model) for model in models])
    for losses in found:
        assert losses[0][0] == losses[1][0] == found[0][0][0] and np.array_equal(losses[0][1], losses[1][1])
