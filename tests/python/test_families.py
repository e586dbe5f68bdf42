"""Every family against transformers and PEFT on tiny random models: logits, greedy text, LoRA gradients, round trips."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from device_values import write_values
from safetensors.numpy import load_file, save_file

from lora_c import _core, reference
from lora_c.configs import LoraConfig
from lora_c.errors import CheckpointError
from lora_c.families.architectures import architecture_of
from lora_c.families.table import FAMILIES
from lora_c.model.model import Model
from lora_c.model.opening import load_model

GOLDEN = Path(__file__).parents[1] / "golden" / "families"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
TRAINED = [name for name in CASES if "_" not in name] + ["phi3_longrope", "gemma3_conditional"]


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def from_bits(bits: np.ndarray) -> np.ndarray:
    return bits.view(ml_dtypes.bfloat16).astype(np.float32)


def tensors(record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key[7:]: from_bits(value) for key, value in record.items() if key.startswith("tensor.")}


def folder(record: dict[str, np.ndarray], path: Path, **changes: object) -> Path:
    """The model folder of a record, in float32."""
    path.mkdir()
    config = json.loads(record["config"].tobytes()) | changes
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors(record), path / "model.safetensors", metadata={"format": "pt"})
    return path


def greedy(model: Model, ids: np.ndarray, n: int) -> list[int]:
    from lora_c.configs import GenerationConfig
    from lora_c.generation.answers import generate_ids

    config = GenerationConfig(max_new_tokens=n, ignore_eos=True, precision="exact")
    return list(generate_ids(model, ids.tolist(), config))


def adapt(model: Model, record: dict[str, np.ndarray]) -> None:
    model.add_adapter(LoraConfig(r=4, lora_alpha=8))
    for parameter in model.trainable_parameters():
        write_values(parameter, from_bits(record["adapter." + parameter.name]))


def loss_and_gradients(model: Model, ids: np.ndarray) -> float:
    weight = np.ones(len(ids), np.float32)
    weight[-1] = 0
    cu, targets = np.array([0, len(ids)], np.int32), np.roll(ids, -1)
    for parameter in model.trainable_parameters():
        parameter.zero_grad()
    n = len(ids) - 1
    return model.decoder.forward_backward(ids, cu, targets, weight, grad_scale=1 / n) / n


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.fixture
def isa():
    """Set the instruction set for one test."""
    before = _core.get_isa()
    yield _core.set_isa
    _core.set_isa(before)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_text(name: str, tmp_path: Path, isa) -> None:
    record = golden(name)
    model = load_model(folder(record, tmp_path / "model"))
    for rung in _core.supported_isas():
        if rung == "ref":
            continue
        isa(rung)
        assert np.abs(model.decoder.logits(record["ids"]) - record["logits"]).max() < 1e-4, rung
        assert greedy(model, record["ids"], len(record["greedy"])) == record["greedy"].tolist(), rung


@pytest.mark.parametrize("name", CASES)
def test_packed_and_cached_like_alone(name: str, tmp_path: Path) -> None:
    """Two sequences in one batch, and one token at a time against the cache."""
    record = golden(name)
    model = load_model(folder(record, tmp_path / "model"))
    ids = record["ids"]
    short = ids[:17]
    both = model.decoder.logits(np.concatenate([short, ids]), np.array([0, 17, 57], np.int32))
    np.testing.assert_allclose(both[17:], record["logits"], atol=1e-4)
    alone = model.decoder.logits(short)
    np.testing.assert_allclose(both[:17], alone, atol=1e-5)
    cache = model.decoder.new_cache(40)
    for i, token in enumerate(short):
        row = model.decoder.decode(cache, [int(token)])[0]
        np.testing.assert_allclose(row, alone[i], atol=2e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_lora_gradients(name: str, tmp_path: Path) -> None:
    record = golden(name)
    model = load_model(folder(record, tmp_path / "model"))
    adapt(model, record)
    assert len(model.trainable_parameters()) == sum(key.startswith("grad.") for key in record)
    assert abs(loss_and_gradients(model, record["ids"]) - record["loss"]) < 1e-4
    for parameter in model.trainable_parameters():
        assert relative(parameter.grad, record["grad." + parameter.name]) < 1e-3, parameter.name


def decoder_weights(model: Model) -> dict[str, np.ndarray]:
    """The weights by the decoder's names, fused ones in their parts."""
    weights = {}
    for spec in model.architecture.weights():
        parts = spec.parts or ((spec.name, 0),)
        firsts = [first for _, first in parts] + [spec.shape[0]]
        for (part, first), end in zip(parts, firsts[1:], strict=True):
            weights[part] = model.weights[spec.name][first:end]
    return weights


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_of_every_layer_are_those_of_the_float64_reference(name: str, tmp_path: Path) -> None:
    record = golden(name)
    model = load_model(folder(record, tmp_path / "model"))
    weights, config, ids = decoder_weights(model), model.decoder.config, record["ids"]
    cu = [0, len(ids) // 3, len(ids)]
    for layer in range(config["num_hidden_layers"] + 1):
        expected = reference.hidden_states(weights, config, ids, cu, layer)
        assert relative(model.decoder.hidden_states(ids, layer, cu), expected) < 1e-5, layer
    last = model.decoder.hidden_states(ids, layer)
    head = weights["embed_tokens"] if config["tie_word_embeddings"] else weights["lm_head"]
    logits = reference.softcap(config["logit_scale"] * reference.linear(last, head), config["logit_softcap"])
    np.testing.assert_allclose(logits, record["logits"], atol=1e-4)  # of transformers
    for wrong in (-1, config["num_hidden_layers"] + 1):
        with pytest.raises(ValueError, match="layer: expected"):
            model.decoder.hidden_states(ids, wrong)


@pytest.mark.parametrize("name", CASES)
def test_the_readable_reference_says_the_same(name: str, tmp_path: Path) -> None:
    record = golden(name)
    model = load_model(folder(record, tmp_path / "model"))
    weights = decoder_weights(model)
    logits = reference.decoder_logits(weights, model.decoder.config, record["ids"], [0, len(record["ids"])])
    np.testing.assert_allclose(logits, record["logits"], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"use_sliding_window": True}, "use_sliding_window: expected nothing"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected nothing"),
        ("llama", {"embedding_multiplier": 2.0}, "embedding_multiplier: expected nothing, got '2.0'"),
        ("llama", {"residual_scale_of_tomorrow": [1]}, "residual_scale_of_tomorrow"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act: expected one of silu"),
        ("mistral", {"attention_bias": True}, "attention_bias: expected nothing"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types: expected 2 of sliding_attention"),
        ("qwen2", {"layer_types": ["sliding_attention"]}, "layer_types: expected 2 of"),
        ("qwen3", {"layer_types": ["linear_attention", "full_attention"]}, "layer_types: expected 2 of"),
        ("smollm3", {"no_rope_layers": [2, 1]}, "no_rope_layers: expected 2 of 0 and 1"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}}, "short_factor"),
        ("phi3", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.1}}, "partial_rotary_factor"),
        ("llama", {"is_causal": False}, "is_causal: expected nothing, got 'False'"),
        ("qwen2", {"use_rope": False}, "use_rope: expected nothing"),
        ("gpt2", {"is_causal": False}, "is_causal: expected nothing"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention: expected nothing"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar: expected a positive"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention: expected nothing"),
        ("gemma3", {"vision_config": {"depth": 2}}, "vision_config: expected nothing"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv: expected nothing"),
        ("granite", {"logits_scaling": -1}, "logits_scaling: expected a positive"),
        ("granite", {"position_embedding_type": "nope"}, "position_embedding_type: expected nothing"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: expected nothing"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention: expected nothing"),
        ("gpt2", {"activation_function": "relu"}, "hidden_act: expected one of silu"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(name: str, changes: dict, message: str) -> None:
    config = json.loads(golden(name)["config"].tobytes())
    architecture_of(config)
    with pytest.raises(CheckpointError, match=message):
        architecture_of(config | changes)


def test_every_family_has_a_golden_model() -> None:
    found = {json.loads(golden(name)["config"].tobytes())["architectures"][0] for name in TRAINED}
    assert found == {family.architecture for family in FAMILIES}


def test_older_spellings_of_the_same_config(tmp_path: Path) -> None:
    """rope_theta with rope_scaling, and the windows as rules instead of lists."""
    llama = json.loads(golden("llama_llama3")["config"].tobytes())
    rope = llama.pop("rope_parameters")
    old = llama | {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    new = architecture_of(json.loads(golden("llama_llama3")["config"].tobytes())).decoder_kwargs
    assert np.array_equal(architecture_of(old).decoder_kwargs["rope_inv_freq"], new["rope_inv_freq"])
    gemma = json.loads(golden("gemma3")["config"].tobytes())
    tables = gemma.pop("rope_parameters")
    wide = tables["full_attention"]
    gemma |= {
        "rope_theta": wide["rope_theta"], "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_local_base_freq": tables["sliding_attention"]["rope_theta"],
    }  # fmt: skip
    new = architecture_of(json.loads(golden("gemma3")["config"].tobytes())).decoder_kwargs
    for key in ("rope_inv_freq", "second_rope_inv_freq", "layer_rope", "sliding_window"):
        assert np.array_equal(architecture_of(gemma).decoder_kwargs[key], new[key]), key
    gemma.pop("layer_types")
    assert architecture_of(gemma | {"sliding_window_pattern": 2}).decoder_kwargs["layer_rope"] == [1, 0, 1]


def test_gemma_scales_its_embedding_in_the_type_of_the_folder() -> None:
    config = json.loads(golden("gemma")["config"].tobytes()) | {"hidden_size": 3072}
    config.pop("torch_dtype", None)
    assert architecture_of(config | {"dtype": "float32"}).decoder_kwargs["embedding_scale"] == np.float32(3072**0.5)
    assert architecture_of(config | {"dtype": "bfloat16"}).decoder_kwargs["embedding_scale"] == 55.5


def test_gpt2_folder_without_prefix(tmp_path: Path) -> None:
    """The first release has no "transformer." before its names, and its masks as buffers."""
    record = golden("gpt2")
    path = folder(record, tmp_path / "model")
    bare = {key.removeprefix("transformer."): value for key, value in tensors(record).items() if key != "lm_head.weight"}
    bare["h.0.attn.bias"] = np.ones((1, 1, 96, 96), np.float32)
    save_file(bare, path / "model.safetensors", metadata={"format": "pt"})
    assert np.abs(load_model(path).decoder.logits(record["ids"]) - record["logits"]).max() < 1e-4


def test_longrope_cache_refuses_to_cross_the_switch(tmp_path: Path) -> None:
    record = golden("phi3_longrope_switch")
    model = load_model(folder(record, tmp_path / "model"))
    cache = model.decoder.new_cache(60)
    model.decoder.decode(cache, record["ids"])
    model.decoder.decode(cache, record["ids"][:5])
    with pytest.raises(ValueError, match="within 45 tokens, where the RoPE frequencies change, got 46"):
        model.decoder.decode(cache, record["ids"][:1])


@pytest.mark.parametrize("name", TRAINED)
def test_threads_and_recomputation_change_no_bit(name: str, tmp_path: Path) -> None:
    record = golden(name)
    model = load_model(folder(record, tmp_path / "model"))
    adapt(model, record)
    threads = _core.get_num_threads()
    try:
        runs = []
        for n, recompute in ((1, "none"), (3, "none"), (2, "layer"), (2, "attention")):
            _core.set_num_threads(n)
            model.decoder.recompute = recompute
            loss = loss_and_gradients(model, record["ids"])
            runs.append((loss, [parameter.grad.tobytes() for parameter in model.trainable_parameters()]))
    finally:
        _core.set_num_threads(threads)
    assert all(run == runs[0] for run in runs[1:])


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "gemma3_conditional"])  # see test_multimodal.py
def test_folder_round_trip(name: str, tmp_path: Path) -> None:
    record = golden(name)
    model = load_model(folder(record, tmp_path / "model"))
    model.save(tmp_path / "again", dtype="float32")
    saved, want = load_file(tmp_path / "again" / "model.safetensors"), tensors(record)
    want.pop("lm_head.weight", None) if model.architecture.tied else None
    assert saved.keys() == want.keys()
    for key, array in want.items():
        assert np.array_equal(saved[key], array), key
    assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == [
        model.architecture.family.architecture
    ]


@pytest.mark.parametrize("name", TRAINED)
def test_adapter_round_trip_and_merge(name: str, tmp_path: Path) -> None:
    record = golden(name)
    path = folder(record, tmp_path / "model")
    model = load_model(path)
    adapt(model, record)
    model.save_adapter(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert saved.keys() == {key[8:] for key in record if key.startswith("adapter.")}
    adapted = model.decoder.logits(record["ids"])
    again = load_model(path)
    again.load_adapter(tmp_path / "adapter")
    assert np.array_equal(again.decoder.logits(record["ids"]), adapted)
    merged = model.merge("float32")
    merged.save(tmp_path / "merged")
    np.testing.assert_allclose(load_model(tmp_path / "merged").decoder.logits(record["ids"]), adapted, atol=2e-4)


@pytest.mark.parametrize("name", TRAINED)
def test_full_training_and_nf4(name: str, tmp_path: Path) -> None:
    """Every tensor of the family gets a gradient; quantized, the adapter still does."""
    record = golden(name)
    path = folder(record, tmp_path / "model")
    full = load_model(path, trainable="full")
    loss_and_gradients(full, record["ids"])
    for parameter in full.trainable_parameters():
        assert np.isfinite(parameter.grad).all() and parameter.grad.any(), parameter.name
    small = load_model(path, quantize="nf4")
    dense = load_model(path)
    for spec in dense.architecture.weights():
        if spec.kind == "projection":
            dense.parts.set_weight(spec.name, small.weights[spec.name].dequantize())
    for model in (small, dense):
        adapt(model, record)
    losses = [loss_and_gradients(model, record["ids"]) for model in (small, dense)]
    assert abs(losses[0] - losses[1]) < 1e-5
    for a, b in zip(small.trainable_parameters(), dense.trainable_parameters(), strict=True):
        assert relative(a.grad, b.grad) < 1e-4, a.name


@pytest.mark.parametrize("changes", [{"rope_theta": 1e-300}, {"rope_scaling": {"rope_type": "linear", "factor": 1e-320}}])
def test_numbers_that_no_model_can_be_made_of_are_named_with_their_file(tiny_model_dir: Path, changes: dict) -> None:
    file = tiny_model_dir / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError, match="config.json: "):
        load_model(tiny_model_dir, progress=False)
