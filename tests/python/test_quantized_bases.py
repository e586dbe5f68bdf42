"""Bases quantized to each type while they are loaded: training, decoding, saving, merging, start values, runs, perplexity."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_c as lc
from lora_c.checkpoints.folder import Checkpoint
from lora_c.configs import FOUR_BIT, QUANT_TYPES
from lora_c.data import Dataset, Sample
from lora_c.errors import CheckpointError, ConfigError
from lora_c.gguf import write_model
from lora_c.inspection import inspect_path
from lora_c.model.model import Model
from lora_c.notices import LoraCWarning
from lora_c.training.evaluation import evaluate_loss
from lora_c.training.memory import forecast_model
from lora_c.weights.quantization import Quantization

IDS = np.arange(3, 35, dtype=np.int32)
OWN = ("fp4_e2m1", "int4")  # of which nobody else knows


@pytest.fixture
def folder(make_model: Callable[..., Path]) -> Path:
    """A tiny model whose rows are multiples of 32."""
    made = make_model(intermediate_size=64)
    (made / "tokenizer.json").unlink(missing_ok=True)  # a kind that a GGUF file cannot hold
    return made


def projections(model: Model) -> dict[str, Any]:
    return {spec.name: model.weights[spec.name] for spec in model.architecture.weights() if spec.kind == "projection"}


def decoded(model: Model) -> Model:
    """The same model with the values that its quantized weights stand for."""
    weights = {name: np.array(model.dense_weight(name)) for name in model.weights}
    return model.with_weights(weights, dict(model.stored_dtypes), {})


def step(model: Model) -> tuple[float, list[np.ndarray[Any, Any]]]:
    model.add_adapter(r=4, init_lora_weights=False, target_modules="all-linear")
    for parameter in model.trainable_parameters():
        parameter.zero_grad()
    loss = model.decoder.forward_backward(
        IDS, np.array([0, 20, IDS.size], np.int32), np.roll(IDS, -1), np.ones(IDS.size, np.float32), grad_scale=1.0
    )
    return loss, [np.array(p.grad) for p in model.trainable_parameters()]


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("kind", QUANT_TYPES)
def test_gradients_are_those_of_the_decoded_base(folder: Path, kind: Any, precision: Any) -> None:
    model = lc.load_model(folder, quantize=kind)
    dense = decoded(model)
    for each in (model, dense):
        each.decoder.precision = precision
    (loss, grads), (want_loss, want) = step(model), step(dense)
    tolerance = 1e-5 if precision == "exact" else 3e-2  # bfloat16 or int16 operands, rounded after or before the scale
    assert abs(loss - want_loss) < tolerance * want_loss
    for grad, expected in zip(grads, want, strict=True):
        assert np.abs(grad - expected).max() <= tolerance * np.abs(want[0]).max() + tolerance * np.abs(expected).max()
    assert any(grad.any() for grad in grads)


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("kind", QUANT_TYPES)
def test_decoding_is_that_of_the_decoded_base(folder: Path, kind: Any, precision: Any) -> None:
    model = lc.load_model(folder, quantize=kind)
    dense = decoded(model)
    logits = []
    for each in (model, dense):
        each.decoder.precision = precision
        cache = each.decoder.new_cache(IDS.size)
        logits.append(np.concatenate([each.decoder.decode(cache, IDS[:-2]), each.decoder.decode(cache, IDS[-2:-1])]))
    tolerance = 1e-4 if precision == "exact" else 5e-2
    assert np.abs(logits[0] - logits[1]).max() <= tolerance * np.abs(logits[1]).max()


def test_loading_says_what_it_made(folder: Path, make_model: Callable[..., Path]) -> None:
    for kind in QUANT_TYPES:
        model = lc.load_model(folder, quantize=kind, block_size=64)
        assert kind.upper() in repr(model) and model.quantization == Quantization(kind)
        kinds = {getattr(w, "quant_type", getattr(w, "type", None)) for w in projections(model).values()}
        assert kinds == {"Q8_0" if kind == "q8_0" else kind}
        assert model.is_quantized == (kind != "q8_0")
    details = lc.load_model(folder, quantize="int4", block_size=32, double_quant=False)
    assert all((w.block_size, w.double_quant) == (32, False) for w in projections(details).values())
    with pytest.warns(LoraCWarning, match=r"2 of 14 matrices \(down_proj\) stay as they are: a Q8_0 block is 32 .* have 44"):
        odd = lc.load_model(make_model("odd"), quantize="q8_0")
    assert odd.weights["layers.0.down_proj"].dtype == np.float32 and odd.weights["layers.0.up_proj"].type == "Q8_0"
    assert "Q8_0" in repr(odd)


def test_options_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="quantize: expected None or one of 'nf4', 'fp4', 'fp4_e2m1', 'int4', 'q8_0', got 'q4_0'"
    ):
        lc.load_model(folder, quantize="q4_0")  # type: ignore[arg-type]
    for options in ({"block_size": 32}, {"double_quant": False}):
        with pytest.raises(ConfigError, match="expected none with quantize='q8_0'"):
            lc.load_model(folder, quantize="q8_0", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="quantize='int4', got 'full'; quantized weights cannot be trained"):
        lc.load_model(folder, quantize="int4", trainable="full")
    lc.load_model(folder, quantize="nf4").save(tmp_path / "nf4")
    with pytest.warns(LoraCWarning, match="its weights are in nf4 already and stay so; int4 is made of dense ones"):
        again = lc.load_model(tmp_path / "nf4", quantize="int4")
    assert again.quantization == Quantization("nf4")


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("kind", FOUR_BIT)
def test_saved_folders_come_back(folder: Path, tmp_path: Path, kind: Any, double_quant: bool) -> None:
    model = lc.load_model(folder, quantize=kind, block_size=32, double_quant=double_quant)
    if kind in OWN:
        with pytest.warns(LoraCWarning, match=f"{kind}: bitsandbytes and transformers read nf4 and fp4 only"):
            model.save(tmp_path / "one")
    else:
        model.save(tmp_path / "one")
    stated = json.loads((tmp_path / "one/config.json").read_text())["quantization_config"]
    assert (stated["bnb_4bit_quant_type"], stated["bnb_4bit_use_double_quant"]) == (kind, double_quant)
    with Checkpoint(tmp_path / "one") as checkpoint:
        name = "model.layers.0.mlp.up_proj.weight"
        np.testing.assert_array_equal(checkpoint.read(name + ".quant_map"), model.weights["layers.0.up_proj"].lut)
        record = json.loads(np.array(checkpoint.read(f"{name}.quant_state.bitsandbytes__{kind}")).tobytes())
    assert record["quant_type"] == kind
    again = lc.load_model(tmp_path / "one")
    assert again.quantization == model.quantization == Quantization(kind, 32, double_quant)
    np.testing.assert_array_equal(again.decoder.logits(IDS), model.decoder.logits(IDS))
    report = inspect_path(tmp_path / "one")
    assert kind in str(report.values) and report.usable


def test_saving_in_another_type(folder: Path, tmp_path: Path) -> None:
    model = lc.load_model(folder, quantize="nf4")
    model.save(tmp_path / "fp4", dtype="fp4")
    again = lc.load_model(tmp_path / "fp4")
    assert again.quantization == Quantization("fp4")
    for name, weight in projections(again).items():
        want = lc.NF4Tensor.quantize(model.weights[name].dequantize(), quant_type="fp4")
        np.testing.assert_array_equal(weight.codes, want.codes)
    again.save(tmp_path / "nf4", dtype="nf4")
    back = lc.load_model(tmp_path / "nf4")
    stated = json.loads((tmp_path / "nf4/config.json").read_text())["quantization_config"]
    assert back.quantization == Quantization("nf4") and stated["bnb_4bit_quant_type"] == "nf4"


def test_q8_0_is_kept_by_gguf_files_and_decoded_in_folders(folder: Path, tmp_path: Path) -> None:
    model = lc.load_model(folder, quantize="q8_0")
    write_model(tmp_path / "model.gguf", model, "Q8_0")
    file = lc.load_model(tmp_path / "model.gguf")
    for name, weight in projections(model).items():
        np.testing.assert_array_equal(file.weights[name].dequantize(), weight.dequantize())
    with pytest.warns(LoraCWarning, match="no place for blocks of Q8_0: .* written, in float32; .* keep the blocks"):
        model.save(tmp_path / "one")
    again = lc.load_model(tmp_path / "one")
    for name, weight in projections(model).items():
        assert again.weights[name].dtype == np.float32
        np.testing.assert_array_equal(again.weights[name], weight.dequantize())
    model.save(tmp_path / "two", dtype="bfloat16")
    assert str(lc.load_model(tmp_path / "two").weights["layers.0.up_proj"].dtype) == "bfloat16"


def test_blocks_of_a_file_are_quantized_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model.gguf", lc.load_model(folder), "Q8_0")
    errors = {kind: lc.load_model(tmp_path / "model.gguf", quantize=kind).requantization_error for kind in FOUR_BIT}
    assert 0.05 < errors["nf4"] < errors["fp4_e2m1"] < errors["int4"] < errors["fp4"] < 0.2
    assert "Quantized again to FP4_E2M1: the weights change by" in capsys.readouterr().err
    same = lc.load_model(tmp_path / "model.gguf", quantize="q8_0")
    assert same.requantization_error is None  # its blocks are Q8_0 already


@pytest.mark.parametrize("kind", QUANT_TYPES)
def test_merging_and_taking_the_type_along(folder: Path, kind: Any) -> None:
    model = lc.load_model(folder, quantize=kind)
    model.add_adapter(r=4, init_lora_weights=False, target_modules=["q_proj", "up_proj"])
    merged = model.merge(dtype=kind)
    assert {getattr(w, "quant_type", getattr(w, "type", None)) for w in projections(merged).values()} == {
        "Q8_0" if kind == "q8_0" else kind
    }
    exact = model.merge().weights["layers.0.up_proj"]
    want = Quantization(kind).quantize(exact)
    np.testing.assert_array_equal(merged.weights["layers.0.up_proj"].dequantize(), want.dequantize())
    assert merged.weights["layers.0.k_proj"] is model.weights["layers.0.k_proj"]


@pytest.mark.filterwarnings("ignore::lora_c.notices.LoraCWarning")
@pytest.mark.parametrize("start", ["loftq", "pissa"])
@pytest.mark.parametrize("kind", QUANT_TYPES)
def test_start_values_are_made_for_the_type(folder: Path, tmp_path: Path, kind: Any, start: str) -> None:
    model = lc.load_model(folder, quantize=kind, block_size=64)
    exact = lc.load_model(folder)
    model.add_adapter(r=4, init_lora_weights=start, target_modules=["up_proj", "q_proj"])
    name = "layers.0.up_proj"
    layer, base, weight = model.adapters[name], model.adapter.base[name], exact.weights[name]
    assert getattr(base, "quant_type", getattr(base, "type", None)) == ("Q8_0" if kind == "q8_0" else kind)
    begun = base.dequantize() + layer.scale * layer.B.data @ layer.A.data
    assert np.linalg.norm(begun - weight) < np.linalg.norm(model.weights[name].dequantize() - weight)
    logits = model.decoder.logits(IDS)
    model.save_adapter(tmp_path / "adapter")
    other = lc.load_model(folder, quantize=kind)
    other.load_adapter(tmp_path / "adapter")
    assert np.abs(other.decoder.logits(IDS) - logits).max() < 1e-5 * np.abs(logits).max()


@pytest.mark.parametrize("kind", ["int4", "q8_0"])
def test_start_values_of_a_merged_model_are_not_those_of_its_folder(folder: Path, kind: Any) -> None:
    model = lc.load_model(folder, quantize=kind)
    model.add_adapter(r=4, init_lora_weights=False, target_modules=["up_proj"])
    merged, name = model.merge(dtype=kind), "layers.0.up_proj"
    np.testing.assert_array_equal(merged.base.full_precision(name), merged.weights[name].dequantize())
    untouched = "layers.0.q_proj"  # still that of the folder
    np.testing.assert_array_equal(merged.base.full_precision(untouched), lc.load_model(folder).weights[untouched])


@pytest.mark.parametrize("kind", QUANT_TYPES)
def test_another_device_computes_the_same(folder: Path, fake: str, kind: Any) -> None:
    model, there = lc.load_model(folder, quantize=kind), lc.load_model(folder, quantize=kind, device=fake)
    np.testing.assert_array_equal(there.decoder.logits(IDS), model.decoder.logits(IDS))


def test_loftq_leaves_alone_what_q8_0_does_not_fit(make_model: Callable[..., Path]) -> None:
    with pytest.warns(LoraCWarning, match="stay as they are"):
        model = lc.load_model(make_model(), quantize="q8_0")
    model.add_adapter(r=4, init_lora_weights="loftq", target_modules=["down_proj"])
    np.testing.assert_array_equal(model.adapter.base["layers.0.down_proj"], model.weights["layers.0.down_proj"])


@pytest.mark.usefixtures("on_cpu")  # elsewhere each of these small matrices has tables of its own
@pytest.mark.parametrize("kind", QUANT_TYPES)
def test_the_forecast_counts_each_weight_once(folder: Path, kind: Any) -> None:
    before = lc.memory_report()["base weights"]["live"]
    model = lc.load_model(folder, quantize=kind)
    owned = sum(w.nbytes for w in projections(model).values())
    dense = sum(w.nbytes for w in model.weights.values() if isinstance(w, np.ndarray))
    model.add_adapter(r=2)
    assert forecast_model(model, 16).base - before == pytest.approx(owned + dense, rel=0.02, abs=4096)


@pytest.mark.parametrize("kind", ["fp4", "q8_0"])
def test_a_run_notes_its_type_and_a_resumed_one_has_it(folder: Path, tmp_path: Path, kind: Any) -> None:
    def trainer(quantize: Any) -> lc.Trainer:
        model = lc.load_model(folder, quantize=quantize)
        model.add_adapter(r=2)
        data = Dataset([Sample(IDS[:12], np.ones(12, np.float32)) for _ in range(4)])
        config = lc.TrainConfig(output_dir=str(tmp_path / "run"), method="qlora", max_steps=2, save_steps=1)
        return lc.Trainer(model, data, config)

    trainer(kind).train()
    with pytest.raises(CheckpointError, match=r"model \(digest\)"):
        trainer("nf4").train(resume=True)
    assert trainer(kind).train(resume=True).steps == 2


@pytest.fixture(scope="module")
def perplexity(shared_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., float]:
    """Of stories260K, a trained model, on text of its own kind that it has not been shown here."""
    folder, text = shared_data("stories260K_hf"), shared_data("tinystories") / "tinystories_sample.txt"
    dataset: list[Dataset] = []

    def measure(**options: Any) -> float:
        model = lc.load_model(folder, progress=False, **options)
        if not dataset:
            part = tmp_path_factory.mktemp("text") / "part.txt"
            part.write_text(text.read_text(encoding="utf-8")[:100_000], encoding="utf-8")
            dataset.append(lc.load_dataset(part, model.tokenizer, max_seq_length=256))
        return math.exp(evaluate_loss(model, dataset[0], max_tokens=4096))

    return measure


@pytest.mark.filterwarnings("ignore:5 of 35 matrices")
def test_perplexity_has_the_order_of_the_paper(perplexity: Callable[..., float]) -> None:
    """NF4 < E2M1 < Int4, as in table 2 of QLoRA; bitsandbytes' FP4 comes last, eight bits lose next to nothing."""
    found = {kind: perplexity(quantize=kind) for kind in (None, *QUANT_TYPES)}
    assert found[None] < found["q8_0"] < 1.01 * found[None]
    assert 1.1 * found["q8_0"] < found["nf4"] < 0.98 * found["fp4_e2m1"] and found["fp4_e2m1"] < 0.98 * found["int4"]
    assert found["int4"] < 0.98 * found["fp4"]
    for kind in FOUR_BIT:
        assert abs(perplexity(quantize=kind, double_quant=False) / found[kind] - 1) < 0.01
