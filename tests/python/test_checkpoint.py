"""Reading and writing model folders: hostile headers, shards, types, names, atomic saves."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from lora_c.checkpoints.safetensors_file import SafetensorsFile, find_non_finite
from lora_c.checkpoints.safetensors_writer import TensorEntry, write_model_files, write_safetensors
from lora_c.errors import CheckpointError, ConfigError, SaveError
from lora_c.families.architectures import architecture_of
from lora_c.families.rope import rope_of
from lora_c.files.atomic import atomic_file, atomic_folder, recover_folder
from lora_c.model.opening import load_model

IDS = np.arange(3, 20, dtype=np.int32)


def raw_file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE = {
    "empty": (b"", b"", None),
    "header longer than the file": ({"a": entry()}, b"\0" * 8, 10_000),
    "header of 2^63 bytes": ({"a": entry()}, b"\0" * 8, 2**63),
    "header above 100 MB": ({"a": entry()}, b"\0" * 8, 100_000_001),
    "not JSON": (b"{not json", b"", None),
    "not UTF-8": (b'{"\xff": 1}', b"", None),
    "nested without end": (b"[" * 100_000, b"", None),
    "a list": ([1, 2], b"", None),
    "a name twice": (b'{"a":%s,"a":%s}' % ((b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}',) * 2), b"", None),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", None),
    "entry is a number": ({"a": 3}, b"", None),
    "unknown field": ({"a": entry() | {"more": 1}}, b"\0" * 8, None),
    "unknown dtype": ({"a": entry("Q4")}, b"\0" * 8, None),
    "dtype is a list": ({"a": entry(["F32"])}, b"\0" * 8, None),
    "negative extent": ({"a": entry(shape=[-2])}, b"\0" * 8, None),
    "boolean extent": ({"a": entry(shape=[True, 2])}, b"\0" * 8, None),
    "fractional extent": ({"a": entry(shape=[2.0])}, b"\0" * 8, None),
    "product above 2^64": ({"a": entry(shape=[2**33, 2**33])}, b"\0" * 8, None),
    "falling offsets": ({"a": entry(offsets=[8, 0])}, b"\0" * 8, None),
    "one offset": ({"a": entry(offsets=[8])}, b"\0" * 8, None),
    "offsets behind the end": ({"a": entry(offsets=[8, 16])}, b"\0" * 8, None),
    "wrong size": ({"a": entry(shape=[3])}, b"\0" * 8, None),
    "overlap": ({"a": entry(), "b": entry(offsets=[4, 12])}, b"\0" * 12, None),
    "gap": ({"a": entry(), "b": entry(offsets=[12, 20])}, b"\0" * 20, None),
    "bytes after the last": ({"a": entry()}, b"\0" * 9, None),
    "truncated data": ({"a": entry()}, b"\0" * 7, None),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file_is_refused_with_its_name(tmp_path: Path, case: str) -> None:
    header, data, length = HOSTILE[case]
    path = raw_file(tmp_path / "x.safetensors", header, data, length)
    if case == "empty":
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="x.safetensors: expected"):
        SafetensorsFile(path)


def test_every_prefix_of_a_good_file_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    whole = (tiny_model_dir / "model.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for n in [*range(0, 64), 200, 1000, len(whole) // 2, len(whole) - 1]:
        cut.write_bytes(whole[:n])
        with pytest.raises(CheckpointError):
            SafetensorsFile(cut)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.uint8, np.int64, np.bool_])
def test_own_writer_and_reference_library_agree(tmp_path: Path, dtype: type) -> None:
    from safetensors.numpy import load_file, save_file

    arrays = {"b": np.ones((3, 5), dtype), "a": np.zeros((7,), np.uint8), "none": np.zeros((0, 4), dtype)}
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    with open(ours, "wb") as file:
        write_safetensors(file.write, [TensorEntry.of(k, v) for k, v in arrays.items()], {"format": "pt"})
    save_file(arrays, theirs)
    read_back = load_file(ours)
    for path in (ours, theirs):
        file = SafetensorsFile(path)
        for name, array in arrays.items():
            assert file.read(name).dtype == array.dtype and np.array_equal(file.read(name), array)
            assert np.array_equal(read_back[name], array)
            file.release(name)


def test_misaligned_tensor_is_readable(tmp_path: Path) -> None:
    values = np.arange(2, dtype=np.float32)
    header = {"a": entry("U8", [1], [0, 1]), "b": entry("F32", [2], [1, 9])}
    file = SafetensorsFile(raw_file(tmp_path / "x.safetensors", header, b"\1" + values.tobytes()))
    assert np.array_equal(file.read("b"), values) and file.read("b").flags.aligned


def test_shards_and_index(make_model, tiny) -> None:
    tensors = tiny.tensors(tiny.config)
    folder = make_model()
    expected = load_model(folder).decoder.logits(IDS)
    (folder / "model.safetensors").unlink()
    write_model_files(folder, [TensorEntry.of(k, v) for k, v in tensors.items()], 20_000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    assert np.array_equal(load_model(folder).decoder.logits(IDS), expected)
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    some = next(iter(table["weight_map"]))
    for value, message in [
        ("../evil.safetensors", "plain file names"),
        ("gone.safetensors", "gone.safetensors: expected this shard"),
    ]:
        index.write_text(json.dumps({"weight_map": table["weight_map"] | {some: value}}))
        with pytest.raises(CheckpointError, match=message):
            load_model(folder)
    index.write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        load_model(folder)


def test_missing_unexpected_and_misshaped_tensors_are_named(tiny, tmp_path: Path) -> None:
    good = tiny.tensors(tiny.config)
    name = "model.layers.1.mlp.up_proj.weight"
    cases = [
        ({k: v for k, v in good.items() if k != name}, f"got none for {name}"),
        (good | {"model.layers.9.extra.weight": np.zeros(2, np.float32)}, "got also model.layers.9.extra.weight"),
        (good | {name: np.zeros((3, 3), np.float32)}, rf"{name}: expected shape \(44, 32\), got \(3, 3\)"),
        (good | {name: good[name].astype(np.float64)}, f"{name}: expected F32, F16 or BF16, got F64"),
    ]
    for i, (tensors, message) in enumerate(cases):
        with pytest.raises(CheckpointError, match=message):
            load_model(tiny.write(tmp_path / str(i), tiny.config, tensors))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_weight_is_named(tiny, tmp_path: Path, dtype: type, quantize: str | None, value: float) -> None:
    tensors = tiny.tensors(tiny.config, dtype)
    tensors["model.layers.0.self_attn.k_proj.weight"][5, 7] = value
    with pytest.raises(CheckpointError, match=r"layers.0.self_attn.k_proj.weight: .* at index \(5, 7\)"):
        load_model(tiny.write(tmp_path / "m", tiny.config, tensors), quantize=quantize)


def test_find_non_finite_spans_chunks() -> None:
    array = np.zeros((2, 300_000), np.float32)
    assert find_non_finite(array) is None
    array[1, 17] = np.nan
    assert find_non_finite(array)[0] == (1, 17)
    assert find_non_finite(np.zeros((0,), np.float32)) is None


def test_float16_becomes_float32_and_bfloat16_stays(make_model, bfloat16) -> None:
    half = load_model(make_model("half", np.float16))
    assert half.weights["layers.0.q_proj"].dtype == np.float32
    brain = load_model(make_model("brain", ml_dtypes.bfloat16))
    assert brain.weights["layers.0.q_proj"].dtype == bfloat16 and brain.weights["norm"].dtype == np.float32
    assert load_model(make_model("brain", ml_dtypes.bfloat16), dtype="float32").weights["lm_head"].dtype == np.float32


def test_pickles_and_strange_folders_are_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing there"):
        load_model(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="got a file"):
        load_model(tiny_model_dir / "config.json")
    (tiny_model_dir / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="got neither"):
        load_model(tiny_model_dir)
    (tiny_model_dir / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match="safe_serialization"):
        load_model(tiny_model_dir)
    (tiny_model_dir / "config.json").unlink()
    with pytest.raises(CheckpointError, match="config.json: expected a file, got nothing there; a model folder has one"):
        load_model(tiny_model_dir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["OPTForCausalLM"]}, "expected one of LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM"),
        ({"hidden_act": "relu"}, "hidden_act: expected one of silu, .*got 'relu'"),
        ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "rope_type: expected one of default, linear"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "spin": 3}}, "rope_scaling: .*'spin'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor"),
        ({"hidden_size": -1}, "hidden_size: expected a positive"),
        ({"vocab_size": None}, "vocab_size: expected a positive number, got nothing"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_theta": 0}, "rope_theta"),
    ],
)
def test_unsupported_config_is_refused_by_name(tiny, changes: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        architecture_of(tiny.config | changes)


def test_families(tiny) -> None:
    qwen2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    qwen = architecture_of(tiny.config | qwen2 | {"use_sliding_window": False, "sliding_window": 8})
    names = {spec.file_name for spec in qwen.weights()}
    assert "model.layers.0.self_attn.q_proj.bias" in names and "model.layers.0.self_attn.o_proj.bias" not in names
    assert qwen.decoder_kwargs["sliding_window"] == 0
    other = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 8, "head_dim": 16}
    mistral = architecture_of(tiny.config | other)
    assert mistral.decoder_kwargs["sliding_window"] == 8 and mistral.decoder_kwargs["head_dim"] == 16
    partly = qwen2 | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    assert architecture_of(tiny.config | partly).decoder_kwargs["sliding_window"] == [0, 8]
    biased = architecture_of(tiny.config | {"attention_bias": True, "mlp_bias": True})
    assert sum(spec.name.endswith(".bias") for spec in biased.weights()) == 14


def test_rope_spellings_and_scaling() -> None:
    plain = rope_of({"rope_theta": 500000.0}, 64, 8192).inv_freq
    spelled = {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}
    assert np.array_equal(plain, rope_of(spelled, 64, 8192).inv_freq)
    linear = rope_of({"rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}, 64, 8192).inv_freq
    np.testing.assert_allclose(linear, plain / 4, rtol=1e-7)
    rule = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    llama3 = rope_of({"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3"} | rule}, 64, 131072).inv_freq
    wavelength = 2 * np.pi / plain
    np.testing.assert_array_equal(llama3[wavelength < 2048], plain[wavelength < 2048])
    np.testing.assert_allclose(llama3[wavelength > 8192], plain[wavelength > 8192] / 8, rtol=1e-7)
    between = (wavelength > 2048) & (wavelength < 8192)
    assert between.any() and np.all(llama3[between] < plain[between]) and np.all(llama3[between] > plain[between] / 8)


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "nf4"])
def test_save_and_load(tiny_model_dir: Path, tmp_path: Path, dtype: str | None) -> None:
    model = load_model(tiny_model_dir)
    model.save(tmp_path / "out", dtype=dtype, max_shard_bytes=10_000)
    again = load_model(tmp_path / "out")
    assert again.is_quantized == (dtype == "nf4")
    if dtype in (None, "float32"):
        assert np.array_equal(again.decoder.logits(IDS), model.decoder.logits(IDS))
    assert again.tokenizer.eos_token_id == 2
    assert not list(tmp_path.glob(".*"))


def test_bad_options_are_refused(tiny_model_dir: Path) -> None:
    for options in [
        {"quantize": "int8"},
        {"block_size": 48},
        {"dtype": "float64"},
        {"trainable": "some"},
        {"trainable": "full", "quantize": "nf4"},
    ]:
        with pytest.raises(ConfigError, match="expected"):
            load_model(tiny_model_dir, **options)


def test_full_disk_keeps_the_old_folder(tiny_model_dir: Path, tmp_path: Path, full_disk) -> None:
    model = load_model(tiny_model_dir)
    out = tmp_path / "out"
    model.save(out)
    (out / "notes.txt").write_text("mine")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    full_disk()
    with pytest.raises(SaveError, match="expected room on the disk"):
        model.save(out, dtype="bfloat16")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert not list(tmp_path.glob(".*"))
    assert np.array_equal(load_model(out).decoder.logits(IDS), model.decoder.logits(IDS))


def test_failing_rename_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(SaveError), atomic_file(path) as file:
        file.write(b"new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("exchange", [True, False])
def test_folder_swap_keeps_strangers_and_drops_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    import lora_c.files.atomic as files

    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    target = tmp_path / "t"
    (target / "sub").mkdir(parents=True)
    for name in ("log.txt", "model-1.bin", "model-2.bin", "sub/deep.txt"):
        (target / name).write_text("old")
    with atomic_folder(target, lambda name: name.startswith("model")) as aside:
        (aside / "model-1.bin").write_text("new")
    assert (target / "model-1.bin").read_text() == "new" and not (target / "model-2.bin").exists()
    assert (target / "log.txt").read_text() == "old" and (target / "sub/deep.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["t"]


def test_crash_between_renames_is_repaired(tiny_model_dir: Path) -> None:
    os.rename(tiny_model_dir, tiny_model_dir.with_name(f".{tiny_model_dir.name}.lora-c-0123abcd.previous"))
    assert recover_folder(tiny_model_dir).is_dir()
    load_model(tiny_model_dir)


def test_save_over_the_source(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir)
    expected = model.decoder.logits(IDS)
    model.save(tiny_model_dir, dtype="bfloat16")
    assert load_model(tiny_model_dir).weights["lm_head"].dtype == ml_dtypes.bfloat16
    assert (tiny_model_dir / "tokenizer.json").exists()
    assert np.array_equal(model.decoder.logits(IDS), expected)


def test_head_training_unties_the_embedding(make_model, tmp_path: Path) -> None:
    folder = make_model(tie_word_embeddings=True)
    tied, head = load_model(folder), load_model(folder, trainable="head")
    assert [p.name for p in head.trainable_parameters()] == ["lm_head.weight"]
    np.testing.assert_allclose(head.decoder.logits(IDS), tied.decoder.logits(IDS), atol=1e-5)
    head.save(tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    assert np.array_equal(load_model(tmp_path / "out").decoder.logits(IDS), head.decoder.logits(IDS))


def test_full_training_makes_every_weight_a_parameter(make_model, tmp_path: Path) -> None:
    model = load_model(make_model(dtype=ml_dtypes.bfloat16, tie_word_embeddings=True), trainable="full")
    assert model.num_parameters(only_trainable=True) == model.num_parameters()
    assert len(model.trainable_parameters()) == len(model.architecture.weights())
    model.save(tmp_path / "out")
    assert np.array_equal(load_model(tmp_path / "out").decoder.logits(IDS), model.decoder.logits(IDS))
