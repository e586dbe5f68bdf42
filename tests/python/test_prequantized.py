"""4-bit folders of bitsandbytes: every variant against golden files, byte-preserving round trips, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from device_values import write_values
from safetensors.numpy import load_file, save_file

import lora_c as lc
from lora_c import _core
from lora_c._core import NF4Tensor, Parameter
from lora_c.checkpoints.folder import Checkpoint
from lora_c.checkpoints.prequantized import nf4_entries, read_4bit
from lora_c.checkpoints.safetensors_file import SafetensorsFile
from lora_c.errors import CheckpointError
from lora_c.model.model import Model
from lora_c.model.opening import load_model

IDS = np.arange(3, 20, dtype=np.int32)
GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "bnb_folders.npz")
VARIANTS = sorted({name.partition("/")[0] for name in GOLDEN.files if "/" in name})
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def bnb_folder(tmp_path: Path) -> Callable[[str], Path]:
    """Unpack a folder that transformers and bitsandbytes wrote."""

    def unpack(variant: str) -> Path:
        folder = tmp_path / variant
        folder.mkdir()
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_bytes(GOLDEN[f"{variant}/{name}"].tobytes())
        return folder

    return unpack


def projections(model: Model) -> dict[str, object]:
    return {s.name.rpartition(".")[2]: model.weights[s.name] for s in model.architecture.weights() if s.kind == "projection"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_every_variant(bnb_folder, variant: str) -> None:
    model = load_model(bnb_folder(variant))
    expected = GOLDEN[f"{variant}/logits"]
    assert np.abs(model.decoder.logits(GOLDEN["ids"]) - expected).max() < 1e-4 * np.abs(expected).max()
    quantized = [w for w in projections(model).values() if isinstance(w, lc.NF4Tensor)]
    assert {w.quant_type for w in quantized} == {variant[:3]}
    assert {w.double_quant for w in quantized} == {"nested" in variant or "block" in variant}


@pytest.mark.parametrize("variant", VARIANTS)
def test_saving_gives_the_same_bytes(bnb_folder, tmp_path: Path, variant: str) -> None:
    folder = bnb_folder(variant)
    load_model(folder).save(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "again/config.json").read_text()) == json.loads((folder / "config.json").read_text())


def test_storage_types_and_block_sizes_are_those_of_the_file(bnb_folder) -> None:
    for variant, dtype in [("nf4", "U8"), ("nf4_nested_bfloat16_storage", "BF16"), ("fp4_nested_float32_storage", "F32")]:
        assert Checkpoint(bnb_folder(variant)).tensors[UP].dtype == dtype
    weights = projections(load_model(bnb_folder("nf4_block_per_weight")))
    assert (weights["up_proj"].block_size, weights["gate_proj"].block_size) == (128, 64)


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_modules_that_were_skipped_stay_dense(bnb_folder, tmp_path: Path, quantize: str | None) -> None:
    model = load_model(bnb_folder("nf4_skipped_modules"), quantize=quantize)
    dense = {name for name, weight in projections(model).items() if not isinstance(weight, lc.NF4Tensor)}
    assert dense == {"q_proj", "down_proj"}
    model.add_adapter(r=2, target_modules=["gate_proj"])
    merged = model.merge(dtype="nf4")
    merged.save(tmp_path / "merged")
    assert not any(isinstance(w, np.ndarray) for w in projections(merged).values())
    skipped = json.loads((tmp_path / "merged/config.json").read_text())["quantization_config"]["llm_int8_skip_modules"]
    assert skipped is None  # transformers would otherwise look for dense weights


def test_fp4_keeps_its_name_and_computes_on_every_rung(bnb_folder) -> None:
    weight = projections(load_model(bnb_folder("fp4_nested_float32_storage")))["up_proj"]
    assert weight.quant_type == "fp4" and "fp4" in repr(weight) and weight.lut[11] == -1 and weight.lut[8] == 0
    x, dy = (np.random.default_rng(n).standard_normal((33, n)).astype(np.float32) for n in (32, 44))
    dense = weight.dequantize().astype(np.float64)
    before = _core.get_isa()
    try:
        for isa in _core.supported_isas():
            _core.set_isa(isa)
            for rows in (1, 5, 33):
                np.testing.assert_allclose(lc.ops.linear(x[:rows], weight), x[:rows] @ dense.T, atol=1e-4)
                np.testing.assert_allclose(lc.ops.linear_backward(dy[:rows], weight), dy[:rows] @ dense, atol=1e-4)
    finally:
        _core.set_isa(before)


def test_fp4_without_a_table_has_the_one_of_bitsandbytes() -> None:
    codes = np.arange(16, dtype=np.uint8).repeat(2) * 17
    w = lc.NF4Tensor.from_parts(codes, (1, 64), absmax=np.array([12], np.float32), quant_type="fp4")
    expected = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3]).repeat(4)
    np.testing.assert_allclose(w.dequantize()[0], np.concatenate([expected, -expected]), rtol=1e-7)
    with pytest.raises(ValueError, match="quant_type: expected 'nf4', 'fp4', 'fp4_e2m1' or 'int4', got 'int8'"):
        lc.NF4Tensor.from_parts(codes, (1, 64), absmax=np.array([12], np.float32), quant_type="int8")


def test_training_on_an_fp4_base_keeps_its_bytes(bnb_folder, tmp_path: Path) -> None:
    folder = bnb_folder("fp4_float16")
    model = load_model(folder, quantize="nf4")
    model.add_adapter(r=2)
    ids = np.ascontiguousarray(GOLDEN["ids"])
    weight = np.ones(ids.size, np.float32)
    loss = model.decoder.forward_backward(ids, np.array([0, ids.size], np.int32), np.roll(ids, -1), weight, grad_scale=1.0)
    assert np.isfinite(loss) and any(p.grad.any() for p in model.trainable_parameters())
    model.delete_adapter()
    model.save(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("double_quant", [True, False])
def test_prequantized_folder_round_trip_keeps_bytes(make_model, tmp_path: Path, double_quant: bool) -> None:
    folder = make_model(dtype=ml_dtypes.bfloat16)
    model = load_model(folder, quantize="nf4", double_quant=double_quant)
    model.save(tmp_path / "one")
    again = load_model(tmp_path / "one")
    assert again.is_quantized and np.array_equal(again.decoder.logits(IDS), model.decoder.logits(IDS))
    again.save(tmp_path / "two")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    assert (tmp_path / "one/config.json").read_bytes() == (tmp_path / "two/config.json").read_bytes()
    names = Checkpoint(tmp_path / "one").tensors
    base = "model.layers.0.self_attn.q_proj.weight"
    assert names[base].shape == (32 * 32 // 2, 1) and names[base].dtype == "U8"
    assert (base + ".nested_absmax" in names) == double_quant
    dense = load_model(tmp_path / "one", dtype="float32")
    np.testing.assert_allclose(dense.decoder.logits(IDS), model.decoder.logits(IDS), atol=1e-4)


def test_damaged_prequantized_folder_is_refused(make_model, tmp_path: Path) -> None:
    load_model(make_model(), quantize="nf4").save(tmp_path / "q")
    path = tmp_path / "q/model.safetensors"
    good = load_file(path)
    base = "model.layers.0.self_attn.q_proj.weight"
    state = base + ".quant_state.bitsandbytes__nf4"
    record = json.loads(good[state].tobytes())

    def with_state(**changes: object) -> dict[str, np.ndarray]:
        return good | {state: np.frombuffer(json.dumps(record | changes).encode(), np.uint8)}

    nan = good[base + ".nested_absmax"].copy()
    nan[0] = np.nan
    huge = {base + ".nested_absmax": np.full_like(nan, 3e38), base + ".nested_quant_map": np.full(256, 3e38, np.float32)}
    cases = [
        (good | huge, "expected scales that decode to finite numbers, got inf at block 0"),
        ({k: v for k, v in good.items() if k != base + ".absmax"}, ".absmax: expected this tensor"),
        (good | {base: good[base][:-1]}, "bytes of codes"),
        (good | {base + ".nested_absmax": nan}, "expected finite numbers"),
        (with_state(shape=[64, 16]), "shape: expected"),
        (with_state(blocksize=0), "blocksize: expected one of"),
        (with_state(quant_type="fp4"), "quant_type"),
        (with_state(nested_offset=None), "nested_offset"),
        (with_state(nested_offset=10**400), "nested_offset"),
        (with_state(nested_offset=True), "nested_offset"),
        (with_state(nested_blocksize=-1), "nested_blocksize"),
        (with_state(nested_blocksize=256.0), "nested_blocksize"),
        (with_state(blocksize=64.0), "blocksize: expected one of"),
        (with_state(blocksize=[64]), "blocksize: expected one of"),
        (with_state(dtype="float8"), "dtype: expected one of float32"),
        (with_state(surprise=1), "expected an object with the fields"),
        (good | {state: np.frombuffer(b"{", np.uint8)}, "expected a JSON record"),
        ({(k.replace("__nf4", "__fp4") if k == state else k): v for k, v in good.items()}, "quant_type: expected 'fp4'"),
    ]
    for tensors, message in cases:
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path / "q")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quant_method: .* got 'gptq'; load the model that it was made from"),
        ({"quant_method": "awq"}, "got 'awq'"),
        ({"quant_method": "fp8"}, "got 'fp8'"),
        ({"quant_method": ["x"] * 1000}, "quant_method"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, r"8-bit ones \(LLM.int8\)"),
        ({"_load_in_8bit": True}, "8-bit"),
    ],
)
def test_other_quantization_is_refused_by_name(make_model, options: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(make_model(quantization_config=options))


@pytest.mark.parametrize(
    ("end", "method"),
    [("SCB", "LLM.int8"), ("qweight", "GPTQ or AWQ"), ("weight_scale_inv", "FP8"), ("weight_packed", "compressed")],
)
def test_other_quantization_is_found_by_its_tensors(tiny_model_dir: Path, end: str, method: str) -> None:
    path = tiny_model_dir / "model.safetensors"
    save_file(load_file(path) | {f"model.layers.0.mlp.up_proj.{end}": np.zeros(4, np.float32)}, path)
    with pytest.raises(CheckpointError, match=f"{end}: expected dense, NF4 or FP4 weights, got .*{method}.*made from"):
        load_model(tiny_model_dir)


def test_quantized_embedding_is_refused_with_the_way_out(make_model, tmp_path: Path) -> None:
    load_model(make_model(), quantize="nf4").save(tmp_path / "q")
    path = tmp_path / "q/model.safetensors"
    tensors = load_file(path)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [64, 32]}
    tensors["model.embed_tokens.weight.quant_state.bitsandbytes__nf4"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="embed_tokens.weight: expected a dense tensor, got a 4-bit one.*quantize='nf4'"):
        load_model(tmp_path / "q")


def test_number_of_layers_is_checked_before_it_is_used(make_model) -> None:
    with pytest.raises(CheckpointError, match="expected the tensors of 9999 layers"):
        folder = make_model()
        config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 9999}
        (folder / "config.json").write_text(json.dumps(config))
        load_model(folder)


@pytest.fixture
def quantized_head(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder whose head is in 4 bits as well, as bitsandbytes makes it where llm_int8_skip_modules is []."""
    model = load_model(make_model(hidden_size=64), quantize="nf4")
    model.weights["lm_head"] = NF4Tensor.quantize(model.weights["lm_head"])
    model.save(tmp_path / "q")
    config = json.loads((tmp_path / "q/config.json").read_text())
    assert config["quantization_config"]["llm_int8_skip_modules"] == []
    assert any(name.startswith("lm_head.weight.quant_state") for name in load_file(tmp_path / "q/model.safetensors"))
    return tmp_path / "q"


def test_a_head_in_4_bits(quantized_head: Path, tmp_path: Path) -> None:
    model = load_model(quantized_head)
    head = model.weights["lm_head"]
    assert isinstance(head, NF4Tensor)
    ids = np.arange(3, 40, dtype=np.int32)
    logits = model.decoder.logits(ids)
    dense = load_model(quantized_head)
    dense.decoder.set_weight("lm_head", head.dequantize())
    np.testing.assert_allclose(logits, dense.decoder.logits(ids), rtol=1e-5, atol=1e-5)
    losses, gradients = [], []
    for one in (model, dense):
        one.add_adapter(r=2, target_modules="all-linear")
        for i, parameter in enumerate(one.trainable_parameters()):
            write_values(parameter, np.random.default_rng(i).standard_normal(parameter.shape) * 0.1)
        cu, weight = np.array([0, len(ids)], np.int32), np.ones(len(ids), np.float32)
        losses.append(one.decoder.forward_backward(ids, cu, np.roll(ids, -1), weight))
        gradients.append([parameter.grad.copy() for parameter in one.trainable_parameters()])
        one.delete_adapter()
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for got, want in zip(*gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    model.save(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (quantized_head / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "again/config.json").read_text()) == json.loads((quantized_head / "config.json").read_text())


def test_a_head_in_4_bits_merged_and_trained(quantized_head: Path, tmp_path: Path) -> None:
    model = load_model(quantized_head)
    model.add_adapter(r=2, target_modules=["q_proj"])
    kept = model.merge(dtype="nf4")
    assert kept.weights["lm_head"] is model.weights["lm_head"] and "lm_head" in kept.quant_records
    kept.save(tmp_path / "kept")
    assert isinstance(load_model(tmp_path / "kept").weights["lm_head"], NF4Tensor)
    dense = model.merge(dtype="float32").weights["lm_head"]
    np.testing.assert_array_equal(dense, model.weights["lm_head"].dequantize())
    trained = load_model(quantized_head, trainable="head").weights["lm_head"]
    assert isinstance(trained, Parameter)
    np.testing.assert_array_equal(trained.data, dense)


def test_small_file_of_another_tool(shared_data) -> None:
    """Its header is as listed beside it; its matrix decodes to table value times scale, bit for bit."""
    folder = shared_data("bnb_reference")
    file = SafetensorsFile(folder / "bnb_nf4.safetensors")
    listed = json.loads((folder / "bnb_nf4.expected.json").read_text())
    origin = 8 + listed["header_size"]
    for entry in listed["tensors"]:
        info = file.tensors[entry["name"]]
        assert (info.dtype, list(info.shape)) == (entry["dtype"], entry["shape"])
        assert [info.start - origin, info.end - origin] == entry["data_offsets"]
    assert len(file.tensors) == len(listed["tensors"])
    name = "model.layers.0.weight"
    state = json.loads(file.read(name + ".quant_state.bitsandbytes__nf4").tobytes())
    tensor, record = read_4bit(name, tuple(state["shape"]), file.tensors, file.read)
    codes = file.read(name).ravel()
    index = np.stack([codes >> 4, codes & 15], axis=1).ravel()
    expected = file.read(name + ".quant_map")[index] * file.read(name + ".absmax")[0]
    assert np.array_equal(tensor.dequantize().ravel(), expected)
    bits = expected.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert np.array_equal(tensor.dequantize(dtype="bfloat16").view(np.uint16).ravel(), bits)
    for entry in nf4_entries(name, tensor, record.dtype, record):
        assert entry.load().tobytes() == file.read(entry.name).tobytes()
