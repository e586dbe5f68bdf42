"""GGUF models: the shared file against its golden text, round trips, training on blocks, tokenizers, and every refusal."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lora_c as lc
from lora_c.errors import AdapterError, CheckpointError, ConfigError
from lora_c.gguf import read_adapter, write_adapter, write_model
from lora_c.gguf.checkpoint import deinterleave, interleave
from lora_c.gguf.format import Kind, Value
from lora_c.gguf.reader import GGUFFile
from lora_c.gguf.tokenizer import SPLITS, tokenizer_of
from lora_c.gguf.vocabulary import tokenizer_metadata
from lora_c.gguf.writer import GGUFEntry, array, float32, text, uint32, write_gguf
from lora_c.notices import LoraCWarning
from lora_c.tokenizer import Tokenizer

IDS = np.array([1, 5, 9, 2, 30, 7, 11, 4], np.int32)
CU = np.array([0, 8], np.int32)
BLOCKS = {"Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q4_K": (256, 144)}
BLOCKS |= {"Q5_K": (256, 176), "Q6_K": (256, 210)}


def random_blocks(name: str, rows: int, cols: int, rng: np.random.Generator) -> lc.GGMLTensor:
    """Random codes; scales so that weights are about 0.1."""
    values, size = BLOCKS[name]
    blocks = rng.integers(0, 256, (rows * cols // values, size), dtype=np.uint8)
    spread = {"Q8_0": 64, "Q4_0": 4, "Q4_1": 8, "Q5_0": 8, "Q5_1": 16, "Q4_K": 300, "Q5_K": 600, "Q6_K": 1500}[name]
    offsets = {"Q6_K": (208,)}.get(name, (0, 2) if name[-1] in "1K" else (0,))
    for i, offset in enumerate(offsets):
        sign = -1 if name[-1] == "1" and i else 1
        centre = spread / (1 if not i else 8 if name[-1] == "1" else 8)
        scale = (sign * (0.1 + 0.02 * rng.standard_normal(len(blocks))) / centre).astype(np.float16)
        blocks[:, offset : offset + 2] = scale[:, None].view(np.uint8)
    return lc.GGMLTensor.from_blocks(blocks.reshape(-1), (rows, cols), name)


def entry(name: str, value: Any) -> GGUFEntry:
    """A tensor of the file, float32 unless it is blocks."""
    if isinstance(value, lc.GGMLTensor):
        return GGUFEntry(name, value.type, value.shape, lambda: value)
    stored = np.asarray(value, np.float32)
    return GGUFEntry(name, "F32", stored.shape, lambda: stored)


SIZES = {"hidden": 256, "mid": 256, "layers": 2, "heads": 4, "kv": 2, "vocab": 32}


def llama_values(**changes: Any) -> dict[str, Value]:
    """Metadata of a small Llama."""
    sizes = SIZES
    values = {
        "general.architecture": text("llama"), "llama.block_count": uint32(sizes["layers"]),
        "llama.context_length": uint32(64), "llama.embedding_length": uint32(sizes["hidden"]),
        "llama.feed_forward_length": uint32(sizes["mid"]), "llama.attention.head_count": uint32(sizes["heads"]),
        "llama.attention.head_count_kv": uint32(sizes["kv"]), "llama.attention.layer_norm_rms_epsilon": float32(1e-5),
        "llama.rope.freq_base": float32(10000.0), "llama.rope.dimension_count": uint32(64),
    }  # fmt: skip
    return values | changes


def llama_tensors(kind: str | None, seed: int = 0) -> dict[str, Any]:
    """Tensors of a small Llama, its projections in blocks."""
    rng = np.random.default_rng(seed)
    hidden, mid, vocab = SIZES["hidden"], SIZES["mid"], SIZES["vocab"]
    kv = SIZES["kv"] * hidden // SIZES["heads"]
    shapes = {
        "attn_q": (hidden, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden), "attn_output": (hidden, hidden),
        "ffn_gate": (mid, hidden), "ffn_up": (mid, hidden), "ffn_down": (hidden, mid),
    }  # fmt: skip
    tensors: dict[str, Any] = {
        "token_embd.weight": rng.standard_normal((vocab, hidden)) * 0.3,
        "output_norm.weight": 1 + rng.standard_normal(hidden) * 0.1,
    }
    for n in range(SIZES["layers"]):
        for norm in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{n}.{norm}.weight"] = 1 + rng.standard_normal(hidden) * 0.1
        for name, shape in shapes.items():
            value = rng.standard_normal(shape) * 0.06 if kind is None else random_blocks(kind, *shape, rng)
            tensors[f"blk.{n}.{name}.weight"] = value
    return tensors


def write_file(path: Path, values: dict[str, Value], tensors: dict[str, Any]) -> Path:
    """A GGUF file."""
    with open(path, "wb") as file:
        write_gguf(file.write, values, [entry(name, value) for name, value in tensors.items()])
    return path


@pytest.fixture
def llama_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a small Llama; keywords with dots replaced by two underscores change its metadata."""

    def make(kind: str | None = "Q4_0", name: str = "model.gguf", drop: tuple[str, ...] = (), **changes: Value) -> Path:
        values = llama_values(**{key.replace("__", "."): value for key, value in changes.items()})
        values = {key: value for key, value in values.items() if key not in drop}
        tensors = {key: value for key, value in llama_tensors(kind).items() if key not in drop}
        return write_file(tmp_path / name, values, tensors)

    return make


# --- the shared model ---------------------------------------------------------------------------------------------------


def test_shared_file_equals_the_folder_bit_for_bit(shared_data: Callable[[str], Path]) -> None:
    model = lc.load_model(shared_data("stories260K") / "stories260K.gguf")
    folder = lc.load_model(shared_data("stories260K_hf"))
    with np.load(shared_data("stories260K_hf") / "golden_logits.npz") as record:
        golden = dict(record)
    logits = model.decoder.logits(golden["input_ids"])
    np.testing.assert_array_equal(logits, folder.decoder.logits(golden["input_ids"]))
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)
    text_of = (shared_data("stories260K") / "golden200.txt").read_text(encoding="utf-8")
    assert model.generate("", max_new_tokens=200, precision="exact") == text_of
    assert text_of in (shared_data("stories260K") / "greedy200.txt").read_text(encoding="utf-8")
    assert model.eos_token_ids == {2} and model.tokenizer.bos_token_id == 1


def test_shared_file_tokenizes_as_the_folder(shared_data: Callable[[str], Path]) -> None:
    ours = lc.load_model(shared_data("stories260K") / "stories260K.gguf").tokenizer
    theirs = Tokenizer.from_folder(shared_data("stories260K_hf"))
    sample = (shared_data("tinystories") / "tinystories_sample.txt").read_text(encoding="utf-8")[:20000]
    for line in [sample, "", " ", "a", "  two  spaces ", "é 漢字 🙂", "<s>hey</s> you", "tab\tnew\n\nline"]:
        assert ours.encode(line) == theirs.encode(line), line
        assert ours.decode(ours.encode(line)) == theirs.decode(theirs.encode(line))
    assert ours.special_tokens == theirs.special_tokens


# --- round trips --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_folder_to_file_and_back(make_model: Callable[..., Path], tmp_path: Path, kind: Any) -> None:
    folder = make_model(
        rope_scaling={
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }, hidden_size=64, intermediate_size=96, attention_bias=True,
    )  # fmt: skip
    model = lc.load_model(folder)
    model._tokenizer = None  # its word tokenizer has no place in a GGUF file
    write_model(tmp_path / "model.gguf", model, kind)
    again = lc.load_model(tmp_path / "model.gguf")
    assert not again.has_tokenizer
    for name, weight in model.weights.items():
        got = again.weights[name]
        got = got if isinstance(got, np.ndarray) else got.dequantize()
        np.testing.assert_allclose(
            got.astype(np.float32), weight, atol={"F32": 0, "F16": 1e-3, "BF16": 5e-3, "Q8_0": 5e-3}[kind], err_msg=name
        )
    assert isinstance(again.weights["layers.1.q_proj"], lc.GGMLTensor) == (kind in ("F16", "Q8_0"))
    if kind == "F32":
        np.testing.assert_array_equal(again.decoder.logits(IDS), model.decoder.logits(IDS))
    write_model(tmp_path / "again.gguf", again, kind)
    first, second = (GGUFFile(tmp_path / name) for name in ("model.gguf", "again.gguf"))
    for name, info in first.tensors.items():
        assert info.type.name == second.tensors[name].type.name
        if name != "rope_freqs.weight":
            assert bytes(first._view[info.start : info.end]) == bytes(
                second._view[second.tensors[name].start :][: info.end - info.start]
            )


def test_blocks_survive_a_round_trip_and_a_folder(llama_file: Callable[..., Path], tmp_path: Path) -> None:
    path = llama_file("Q8_0")
    model = lc.load_model(path)
    write_model(tmp_path / "again.gguf", model, "Q8_0")
    first, second = GGUFFile(path), GGUFFile(tmp_path / "again.gguf")
    for name in ("blk.1.attn_q.weight", "blk.0.attn_k.weight", "blk.1.ffn_down.weight"):
        np.testing.assert_array_equal(first.read(name).blocks, second.read(name).blocks)  # type: ignore[union-attr]
    model.save(tmp_path / "folder")
    np.testing.assert_array_equal(lc.load_model(tmp_path / "folder").decoder.logits(IDS), model.decoder.logits(IDS))
    assert json.loads((tmp_path / "folder/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_interleaving_is_its_own_definition(tiny: SimpleNamespace) -> None:
    rows = np.arange(16.0).reshape(16, 1)
    halves = deinterleave(rows, 2)
    assert halves[:8, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    np.testing.assert_array_equal(interleave(halves, 2), rows)


def test_shards_are_read_together(llama_file: Callable[..., Path], tmp_path: Path) -> None:
    whole = lc.load_model(llama_file("Q4_0"))
    tensors = list(llama_tensors("Q4_0").items())
    for i, part in enumerate((tensors[:7], tensors[7:]), 1):
        values = (llama_values() if i == 1 else {}) | {"split.no": uint32(i - 1), "split.count": uint32(2)}
        write_file(tmp_path / f"m-{i:05d}-of-00002.gguf", values, dict(part))
    split = lc.load_model(tmp_path / "m-00001-of-00002.gguf")
    np.testing.assert_array_equal(split.decoder.logits(IDS), whole.decoder.logits(IDS))
    with pytest.raises(CheckpointError, match="first of 2 files"):
        write_file(tmp_path / "x.gguf", llama_values() | {"split.count": uint32(2)}, dict(tensors))
        lc.load_model(tmp_path / "x.gguf")


# --- blocks as the frozen base ------------------------------------------------------------------------------------------


def train(model: lc.Model, steps: int) -> tuple[list[float], list[np.ndarray]]:
    """A few steps; losses, and the gradients of the first one."""
    model.add_adapter(lc.LoraConfig(r=4, lora_alpha=8, seed=3))
    parameters = model.trainable_parameters()
    rng = np.random.default_rng(1)
    for parameter in parameters:
        parameter.data[...] = rng.standard_normal(parameter.shape) * 0.05
    optimizer = lc.AdamW(parameters, lr=1e-2)
    losses, first = [], []
    targets, weight = np.roll(IDS, -1), np.ones(len(IDS), np.float32)
    for step in range(steps):
        optimizer.zero_grad()
        losses.append(model.decoder.forward_backward(IDS, CU, targets, weight))
        if step == 0:
            first = [np.array(parameter.grad) for parameter in parameters]
        optimizer.step()
    return losses, first


@pytest.mark.parametrize("kind", list(BLOCKS))
def test_training_on_blocks_equals_training_on_their_values(llama_file: Callable[..., Path], kind: str) -> None:
    path = llama_file(kind)
    blocks, dense = lc.load_model(path), lc.load_model(path, dtype="float32")
    assert blocks.weights["layers.0.gate_proj"].type == kind and kind in repr(blocks)
    assert isinstance(dense.weights["layers.0.gate_proj"], np.ndarray)
    (losses, gradients), (want_losses, want) = train(blocks, 6), train(dense, 6)
    assert losses == want_losses and losses[-1] < losses[0] - 0.1
    for got, expected in zip(gradients, want, strict=True):
        np.testing.assert_array_equal(got, expected)
        assert np.abs(got).max() > 0
    np.testing.assert_array_equal(blocks.decoder.logits(IDS), dense.decoder.logits(IDS))


def test_decoding_on_blocks_equals_whole_texts(llama_file: Callable[..., Path]) -> None:
    model = lc.load_model(llama_file("Q4_K"))
    cache = model.decoder.new_cache(16)
    for i, token in enumerate(IDS):
        logits = model.decoder.decode(cache, [int(token)])
        np.testing.assert_allclose(logits[-1], model.decoder.logits(IDS[: i + 1])[-1], atol=2e-5)


def test_requantizing_reports_its_loss(llama_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = llama_file("Q8_0")
    model = lc.load_model(path, quantize="nf4")
    blocks = lc.load_model(path)
    assert blocks.requantization_error is None
    error = norm = 0.0
    for name, weight in model.weights.items():
        if isinstance(weight, lc.NF4Tensor):
            before = blocks.weights[name].dequantize()
            error += float(((weight.dequantize() - before) ** 2).sum())
            norm += float((before**2).sum())
    assert model.requantization_error == pytest.approx((error / norm) ** 0.5, rel=1e-5)
    assert 0.05 < model.requantization_error < 0.15
    assert f"{100 * model.requantization_error:.2f} %" in capsys.readouterr().err
    assert lc.load_model(llama_file(None, "dense.gguf"), quantize="nf4").requantization_error is None


def test_merging_into_blocks(llama_file: Callable[..., Path], tmp_path: Path) -> None:
    model = lc.load_model(llama_file("Q8_0"))
    train(model, 2)
    want = model.decoder.logits(IDS)
    with pytest.raises(AdapterError, match="merge"):
        write_model(tmp_path / "merged.gguf", model)
    with pytest.raises(AdapterError, match="got Q8_0, which cannot be restored"):
        model.merge_adapter()
    merged = model.merge()
    np.testing.assert_allclose(merged.decoder.logits(IDS), want, atol=1e-4)
    write_model(tmp_path / "merged.gguf", merged, "F32")
    np.testing.assert_allclose(lc.load_model(tmp_path / "merged.gguf").decoder.logits(IDS), want, atol=1e-4)


# --- adapters -----------------------------------------------------------------------------------------------------------


def test_adapter_round_trip(llama_file: Callable[..., Path], tmp_path: Path) -> None:
    model = lc.load_model(llama_file("Q4_0"))
    model.add_adapter(
        lc.LoraConfig(
            r=4, lora_alpha=10, target_modules=["q_proj", "k_proj", "down_proj"], rank_pattern={"k_proj": 6},
            alpha_pattern={"down_proj": 3}, use_rslora=True,
        )
    )  # fmt: skip
    rng = np.random.default_rng(2)
    for parameter in model.trainable_parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape) * 0.1
    assert model.adapter is not None
    arrays = model.adapter.arrays()
    for dtype, tolerance in (("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 2e-2)):
        write_adapter(tmp_path / "a.gguf", arrays, model.architecture, dtype)
        file = GGUFFile(tmp_path / "a.gguf")
        assert file.get("general.type") == "adapter" and file.get("adapter.type") == "lora"
        assert "blk.1.attn_q.weight.lora_a" in file.tensors and file.tensors["blk.0.ffn_down.weight.lora_b"].shape == (256, 4)
        again = read_adapter(tmp_path / "a.gguf", model.architecture)
        assert set(again.matrices) == set(arrays.matrices)
        for name, matrix in arrays.matrices.items():
            got = again.matrices[name]
            want = matrix.scale * matrix.B @ matrix.A
            np.testing.assert_allclose(got.scale * got.B @ got.A, want, atol=tolerance * np.abs(want).max())
            assert got.r == matrix.r


def test_adapter_through_the_model(llama_file: Callable[..., Path], tmp_path: Path) -> None:
    path = llama_file("Q4_0")
    model = lc.load_model(path)
    train(model, 2)
    want = model.decoder.logits(IDS)
    model.save_adapter(tmp_path / "a.gguf", format="gguf")
    again = lc.load_model(path)
    again.load_adapter(tmp_path / "a.gguf")
    np.testing.assert_allclose(again.decoder.logits(IDS), want, atol=1e-5)
    again.save_adapter(tmp_path / "folder")
    peft = lc.load_model(path)
    peft.load_adapter(tmp_path / "folder")
    np.testing.assert_array_equal(peft.decoder.logits(IDS), again.decoder.logits(IDS))


def test_adapter_refusals(llama_file: Callable[..., Path], tmp_path: Path) -> None:
    path = llama_file("Q4_0")
    model = lc.load_model(path)
    values = {"general.architecture": text("llama"), "general.type": text("adapter"), "adapter.type": text("lora")}
    values["adapter.lora.alpha"] = float32(8.0)
    good = {"blk.0.attn_v.weight.lora_a": np.ones((2, 256)), "blk.0.attn_v.weight.lora_b": np.ones((128, 2))}
    only_a = {"blk.0.attn_v.weight.lora_a": np.ones((2, 256))}
    cases: list[tuple[dict[str, Value], dict[str, Any], str]] = [
        ({"general.type": text("model")}, good, "general.type: expected 'adapter'"),
        ({"general.architecture": text("qwen2")}, good, "expected 'llama', got 'qwen2'"),
        ({"adapter.type": text("control_vector")}, good, "adapter.type: expected 'lora'"),
        ({"adapter.lora.alpha": float32(float("nan"))}, good, "adapter.lora.alpha: expected a positive"),
        ({"adapter.alora.invocation_tokens": array(np.array([1], np.uint32), Kind.UINT32)}, good, "invocation_tokens"),
        ({}, only_a, "expected lora_a and lora_b, got lora_a alone"),
        ({}, good | {"blk.9.attn_v.weight.lora_a": np.ones((2, 256))}, "of a projection of this model"),
        ({}, good | {"blk.0.attn_v.weight.lora_b": np.ones((64, 2))}, r"got \(2, 256\) and \(64, 2\)"),
        ({}, good | {"blk.0.attn_v.weight.lora_b": np.full((128, 2), np.nan)}, "finite numbers"),
        ({}, {}, "at least one matrix"),
    ]
    assert (
        read_adapter(write_file(tmp_path / "a.gguf", values, good), model.architecture).matrices["layers.0.v_proj"].scale == 4
    )
    for change, tensors, message in cases:
        with pytest.raises(AdapterError, match=message):
            read_adapter(write_file(tmp_path / "a.gguf", values | change, tensors), model.architecture)
    with pytest.raises(CheckpointError, match="give this file to load_adapter"):
        lc.load_model(write_file(tmp_path / "a.gguf", values, good))
    model.add_adapter(lc.LoraConfig(r=2, use_dora=True))
    assert model.adapter is not None
    with pytest.raises(AdapterError, match="DoRA"):
        write_adapter(tmp_path / "b.gguf", model.adapter.arrays(), model.architecture)


# --- the command line ---------------------------------------------------------------------------------------------------


def run(*args: object) -> str:
    """A command that must succeed."""
    from click.testing import CliRunner

    from lora_c.cli import cli

    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.output


def test_commands(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder, data = shared_data("stories260K_hf"), tmp_path / "data.jsonl"
    data.write_text('{"text": "Once upon a time"}\n' * 4)
    assert "gguf" in run("export", folder, tmp_path / "m.gguf", "--to", "gguf", "--dtype", "q8_0")
    blocks = lc.load_model(tmp_path / "m.gguf")
    assert blocks.weights["layers.0.q_proj"].type == "Q8_0" and blocks.weights["layers.0.down_proj"].type == "F16"
    options = ("--max-steps", 2, "--r", 2, "--output-dir", tmp_path / "out")
    run("train", "--model", tmp_path / "m.gguf", "--data", data, *options)
    run("export", tmp_path / "out", tmp_path / "a.gguf", "--to", "gguf")
    run("export", tmp_path / "a.gguf", tmp_path / "back", "--to", "peft", "--model", tmp_path / "m.gguf")
    blocks.load_adapter(tmp_path / "back")
    logits = blocks.decoder.logits(IDS)
    blocks.delete_adapter()
    blocks.load_adapter(tmp_path / "out")
    np.testing.assert_allclose(blocks.decoder.logits(IDS), logits, atol=1e-5)
    run("export", tmp_path / "m.gguf", tmp_path / "folder", "--to", "hf")
    blocks.delete_adapter()
    np.testing.assert_array_equal(lc.load_model(tmp_path / "folder").decoder.logits(IDS), blocks.decoder.logits(IDS))
    assert run("generate", "--model", tmp_path / "m.gguf", "Once upon a", "--max-new-tokens", 1).strip().endswith("time")


# --- metadata -----------------------------------------------------------------------------------------------------------


def test_rope_scaling_follows_the_rule_of_llama_cpp(llama_file: Callable[..., Path]) -> None:
    factor = {"llama__rope__scaling__factor": float32(4.0)}
    with pytest.warns(LoraCWarning, match="rope.scaling.type is none, beside a factor of 4.0; nothing is scaled"):
        unscaled = lc.load_model(llama_file(llama__rope__scaling__type=text("none"), **factor))
    assert "rope_scaling" not in unscaled.config
    assert lc.load_model(llama_file(**factor)).config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    with pytest.raises(CheckpointError, match="rope.scaling.factor: expected none with type longrope, got 4.0"):
        lc.load_model(llama_file(llama__rope__scaling__type=text("longrope"), **factor))


def test_metadata_becomes_the_folder_config(llama_file: Callable[..., Path]) -> None:
    linear = lc.load_model(llama_file(llama__rope__scaling__type=text("linear"), llama__rope__scaling__factor=float32(4.0)))
    assert linear.config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert linear.config["rms_norm_eps"] == 1e-5 and linear.config["tie_word_embeddings"] is True
    per_layer = array(np.array([2, 2], np.int32), Kind.INT32)
    assert lc.load_model(llama_file(llama__attention__head_count_kv=per_layer)).config["num_key_value_heads"] == 2


@pytest.mark.parametrize("theta", [500000.0, 1e30])  # the second: the first pairs turn, all others are stretched
@pytest.mark.parametrize(
    ("low", "high", "old", "factor"),
    [(1.0, 4.0, 8192, 8.0), (1.0, 4.0, 8192, 32.0), (2.0, 7.0, 4096, 16.0), (1.0, 1.01, 512, 4.0), (1.0, 1.3, 512, 4.0)],
)
def test_llama3_rule_is_found_behind_its_factors(
    tmp_path: Path, low: float, high: float, old: int, factor: float, theta: float
) -> None:
    from lora_c.architectures import architecture_of
    from lora_c.gguf.config import config_of, llama3_factors

    factors = llama3_factors(32, theta, factor, low, high, old)
    values = llama_values(**{"llama.rope.freq_base": float32(theta)})
    path = write_file(tmp_path / "m.gguf", values, {"rope_freqs.weight": factors} | llama_tensors("Q4_0"))
    config, _ = config_of(GGUFFile(path))
    written = dict(config["rope_scaling"])
    original = config | {
        "rope_scaling": {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": old,
        }
    }  # fmt: skip
    got, want = (architecture_of(c).decoder_kwargs["rope_inv_freq"] for c in (config, original))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    if (low, high, theta) == (1.0, 4.0, 500000.0):
        assert written["original_max_position_embeddings"] == old and written["high_freq_factor"] == high


def test_model_refusals(llama_file: Callable[..., Path], tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"general__architecture": text("bert")}, "general.architecture: expected one of llama"),
        ({"llama__expert_count": uint32(8)}, "llama.expert_count: expected it unset, got 8"),
        ({"llama__some__feature": uint32(1)}, "llama.some.feature: expected it unset"),
        ({"llama__attention__head_count": uint32(0)}, "head_count: expected a positive number"),
        ({"llama__attention__head_count": text("x")}, "head_count: expected a positive number"),
        ({"llama__attention__head_count_kv": array(np.array([1, 2], np.int32), Kind.INT32)}, "same value for all layers"),
        ({"llama__rope__dimension_count": uint32(32)}, "rope.dimension_count: expected 64"),
        ({"llama__rope__scaling__type": text("yarn2")}, "expected none, linear, yarn or longrope"),
        ({"llama__rope__freq_base": float32(float("inf"))}, "finite number"),
        ({"llama__rope__freq_base": float32(0.0)}, "rope.freq_base: expected a positive number, got 0.0"),
        ({"llama__context_length": uint32(2**31 - 1)}, "max_position_embeddings: expected a positive number"),
        ({"llama__block_count": uint32(3)}, "none for model.layers.2"),
        ({"llama__block_count": uint32(9000)}, "got 20 tensors"),
        ({"llama__block_count": uint32(2**31 - 2)}, "num_hidden_layers: expected at most"),
        ({"llama__embedding_length": uint32(128)}, "expected 32|expected shape"),
        ({"drop": ("llama.embedding_length",)}, "llama.embedding_length: expected a positive number, got None"),
        ({"drop": ("token_embd.weight",)}, "token_embd.weight"),
        ({"drop": ("blk.1.ffn_up.weight",)}, "layers.1.mlp.up_proj"),
    ]
    for changes, message in cases:
        with pytest.raises(CheckpointError, match=message):
            lc.load_model(llama_file(**changes))
    tensors = llama_tensors("Q4_0") | {"blk.0.attn_v.weight": np.zeros((128, 21))}  # rows of 84 bytes, as Q2_K has them
    path = write_file(tmp_path / "q2.gguf", llama_values(), tensors)
    path.write_bytes(path.read_bytes().replace(struct.pack("<QQI", 21, 128, 0), struct.pack("<QQI", 256, 128, 10)))
    with pytest.raises(CheckpointError, match="expected one of F32, F16, .* got Q2_K"):
        lc.load_model(path)
    with pytest.raises(ConfigError, match="type: expected one of F32"):
        write_model(tmp_path / "x.gguf", lc.load_model(llama_file()), "Q4_0")  # type: ignore[arg-type]
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="got a file of another kind"):
        lc.load_model(tmp_path / "notes.txt")


# --- tokenizers ---------------------------------------------------------------------------------------------------------

TEXTS = [
    "Hello world, it's 12345 o'clock",
    "  spaces\n\n\tand tabs ",
    "ÀÉÎ cafe\u0301 日本語 🙂",
    "I'LL don't WE'VE",
    "",
    "<|end|>x<|u|>",
]


def byte_level(split_name: str) -> Tokenizer:
    """A small byte-level tokenizer as a model's tokenizer.json would have it."""
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    split = SPLITS[split_name]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("l", "l"), ("h", "e"), ("he", "ll"), ("1", "2"), ("12", "3"), ("Ġ", "w"), ("o", "r"), ("'", "t"), ("Ġ", "Ġ")]
    vocabulary = {token: i for i, token in enumerate(alphabet + [a + b for a, b in merges] + ["hello"])}
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split.ignore_merges))
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.rule in ("gpt2", "digits"))
    steps: list[Any] = [own]
    if split.rule == "digits":
        steps = [pre_tokenizers.Digits(individual_digits=True), own]
    elif split.rule != "gpt2":
        steps = [pre_tokenizers.Split(Regex(split.rule), "isolated"), own]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.normalizer = normalizers.NFC() if split.nfc else None
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    backend.add_tokens([AddedToken("<|u|>", special=False, normalized=False)])
    return Tokenizer(backend, {"eos_token": "<|end|>"}, "{{ messages }}", "{{ tools }}")


@pytest.mark.parametrize("name", list(SPLITS))
def test_byte_level_tokenizer_round_trip(name: str, tmp_path: Path) -> None:
    ours = byte_level(name)
    values = {"general.architecture": text("llama")} | tokenizer_metadata(ours, ours.vocab_size + 3)
    same = [other for other, split in SPLITS.items() if split.rule == SPLITS[name].rule and split.nfc == SPLITS[name].nfc]
    assert values["tokenizer.ggml.pre"].data in same
    values["tokenizer.ggml.pre"] = text(name)
    again = tokenizer_of(GGUFFile(write_file(tmp_path / "t.gguf", values, {"a": np.zeros(1)})))
    assert again is not None and again.eos_token_id == ours.eos_token_id
    assert (again.chat_template, again.tool_template) == (ours.chat_template, ours.tool_template)
    for line in TEXTS:
        assert again.encode(line) == ours.encode(line), line
        assert again.decode(again.encode(line)) == ours.decode(ours.encode(line))
        assert again.decode(ours.encode(line), skip_special_tokens=False) == ours.decode(
            ours.encode(line), skip_special_tokens=False
        )


def test_packaged_tokenizer_round_trip(tmp_path: Path) -> None:
    folder = Path(lc.__file__ or "").parent / "base_model"
    ours = Tokenizer.from_folder(folder)
    values = tokenizer_metadata(ours, ours.vocab_size)
    again = tokenizer_of(GGUFFile(write_file(tmp_path / "t.gguf", values, {"a": np.zeros(1)})))
    assert again is not None
    for line in TEXTS:
        assert again.encode(line) == ours.encode(line), line
    assert again.chat_template == ours.chat_template


def test_tokenizer_refusals(tmp_path: Path) -> None:
    tokens = array(["<unk>", "a", "b", "ab"], Kind.STRING)
    base = {"tokenizer.ggml.model": text("gpt2"), "tokenizer.ggml.pre": text("gpt-2"), "tokenizer.ggml.tokens": tokens}
    cases: list[tuple[dict[str, Value], str]] = [
        ({"tokenizer.ggml.model": text("bert")}, "expected 'llama' or 'gpt2', got 'bert'"),
        ({"tokenizer.ggml.pre": text("poro-chat")}, "tokenizer.ggml.pre: expected one of llama-bpe"),
        ({"tokenizer.ggml.merges": array(["a c"], Kind.STRING)}, "expected pairs of tokens, got 'a c'"),
        ({"tokenizer.ggml.token_type": array(np.array([1], np.int32), Kind.INT32)}, "expected 4 numbers"),
        ({"tokenizer.ggml.tokens": array(np.array([1], np.int32), Kind.INT32)}, "expected texts"),
    ]
    for change, message in cases:
        with pytest.raises(CheckpointError, match=message):
            tokenizer_of(GGUFFile(write_file(tmp_path / "t.gguf", base | change, {"a": np.zeros(1)})))
    without_pre = {key: value for key, value in base.items() if key != "tokenizer.ggml.pre"}
    with pytest.raises(CheckpointError, match="got None"):
        tokenizer_of(GGUFFile(write_file(tmp_path / "t.gguf", without_pre, {"a": np.zeros(1)})))
