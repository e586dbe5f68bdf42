"""config.json as it stands in the models that people fine-tune, in small: loaded, and the logits are those of transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_c.errors import CheckpointError
from lora_c.families.architectures import architecture_of
from lora_c.families.layer_ropes import rope_keys_without_effect
from lora_c.families.multimodal import text_config
from lora_c.families.table import FAMILIES
from lora_c.model.opening import load_model
from lora_c.notices import LoraCWarning

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from weights_of_names import tensor  # noqa: E402

RECORDS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "published_configs.json").read_text())
DEFAULTS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "config_defaults.json").read_text())
# Keys that no class of transformers reads and that nothing here knows: they are named.
NAMED = {"Phi-4-mini": "full_attn_mod, interpolate_factor"}


def folder_of(config: dict[str, Any], path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    architecture = architecture_of(config)
    around_zero = "gemma" in config["model_type"]
    tensors = {spec.file_name: tensor(spec.file_name, spec.file_shape, around_zero) for spec in architecture.weights()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("style", ["published", "rewritten"])
@pytest.mark.parametrize("name", RECORDS)
def test_logits_are_those_of_transformers(name: str, style: str, tmp_path: Path) -> None:
    record = RECORDS[name]
    config = dict(record[style])
    if style == "published" and "torch_dtype" in config:
        config["torch_dtype"] = "float32"  # of the golden weights; Gemma's factor of the embedding follows it
    folder = folder_of(config, tmp_path / "model")
    if name in NAMED:
        with pytest.warns(LoraCWarning, match=f"config.json: .*{NAMED[name]}: these keys have no effect"):
            model = load_model(folder, progress=False)
    else:
        model = load_model(folder, progress=False)
    ids = np.array(record["ids"], np.int32)
    expected = np.array(record["logits"])
    np.testing.assert_allclose(model.decoder.logits(ids)[3::8], expected, atol=2e-4 * np.abs(expected).max())


def test_every_family_is_among_them() -> None:
    found = {record["published"]["architectures"][0] for record in RECORDS.values()}
    assert found == {family.architecture for family in FAMILIES}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_a_config_leaves_out_is_what_the_class_of_transformers_assumes(name: str) -> None:
    family = next(family for family in FAMILIES if family.architecture == name)
    expected = DEFAULTS[name]
    minimal = {"architectures": [name], "model_type": family.model_type}
    stated = {key: value for key, value in expected.items() if key != "activation"}
    for config in (minimal, {"model_type": family.model_type}):
        left_out = architecture_of(config).decoder_kwargs
        assert left_out["tie_word_embeddings"] == expected["tie_word_embeddings"]
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings"):
            assert left_out[key] == expected[key], key
        for key in ("intermediate_size", "num_key_value_heads", "head_dim"):
            assert left_out[key] == expected.get(key, left_out[key]), key
        assert left_out["norm_eps"] == expected["rms_norm_eps"]
        stated_too = minimal | {family.rename.get(key, key): value for key, value in stated.items()}
        spelled = architecture_of(stated_too).decoder_kwargs
        assert left_out.keys() == spelled.keys()
        for key, value in left_out.items():
            assert np.array_equal(value, spelled[key]), key


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["Mistral3ForConditionalGeneration"], "text_config": {}}, "architectures: .*Mistral3"),
        ({"architectures": ["LlavaForConditionalGeneration"], "text_config": {}}, "architectures: .*Llava"),
        ({"architectures": ["MinistralForCausalLM"], "model_type": "ministral"}, "architectures: .*got MinistralForCausalLM"),
        ({"architectures": ["Phi4MMForCausalLM"], "model_type": "phi4mm"}, "architectures: .*Phi4MM"),
        ({"architectures": ["GraniteMoeForCausalLM"], "model_type": "granitemoe"}, "architectures: .*GraniteMoe"),
        ({"architectures": ["LlamaForTokenClassification"], "model_type": "llama"}, "architectures: .*TokenClass"),
        ({"model_type": "mamba"}, "architectures: .*got 'mamba'"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "mistral"}, "model_type: expected 'llama' .* got 'mistral'"),
    ],
)
def test_other_shapes_are_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        architecture_of(config)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Llama-3-8B", {"rope_parameters": {"rope_theta": 5.0}}, r"rope_parameters.rope_theta: .*\(500000.0\), got 5"),
        (
            "Llama-3.1-8B", {"rope_parameters": {"rope_type": "default"}},
            r"rope_parameters.rope_type: .*rope_scaling.rope_type \(llama3\), got default",
        ),
        (
            "Llama-3.1-8B", {"rope_parameters": {"factor": 4.0}},
            r"rope_parameters.factor: .*rope_scaling.factor \(8.0\), got 4.0",
        ),
        ("Llama-3-8B", {"rope_scaling": {"type": "linear", "rope_type": "yarn"}}, r"type: .*\(yarn\), got linear"),
        (
            "Llama-3.1-8B", {"original_max_position_embeddings": 32},
            r"original_max_position_embeddings: .*\(32\), got 16",
        ),
        ("Llama-3-8B", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("Llama-3-8B", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "'full_attention'"),
        ("Llama-3-8B", {"dtype": "float16"}, r"torch_dtype: .*dtype \(float16\), got bfloat16"),
        ("gemma-3-1b", {"rope_parameters": {"sliding_attention": {"rope_theta": 5.0}}}, r"\(10000\), got 5.0"),
        ("gemma-3-1b", {"rope_parameters": {"rope_theta": 5.0}}, "one table each for full_attention and sliding_attention"),
        (
            "gemma-3-4b", {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
            r"rope_parameters: .*text_config.rope_parameters \(nothing\), got .* transformers reads those of text_config",
        ),
        ("gemma-3-4b", {"hidden_size": 64}, r"hidden_size: .*text_config.hidden_size \(32\), got 64"),
        ("gemma-2-2b", {"hidden_act": "silu"}, r"hidden_act: .*hidden_activation \(gelu_pytorch_tanh\), got silu"),
        ("gemma-2-2b", {"sliding_window": None}, "sliding_window: expected a number"),
        ("gemma-2b", {"hidden_activation": "silu"}, r"hidden_activation: .*hidden_act \(gelu_tanh\), got silu"),
        ("Qwen2.5-7B", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: .* use_sliding_window False"),
        (
            "Qwen2.5-7B", {"use_sliding_window": True, "sliding_window": None, "layer_types": ["sliding_attention"] * 2},
            "layer_types: .* sliding_window None",
        ),
        ("gpt2", {"hidden_size": 64}, r"hidden_size: .*n_embd \(32\), got 64"),
        ("gpt2", {"head_dim": 16}, "head_dim: expected nothing, as GPT2LMHeadModel splits 32 evenly, got 16"),
        ("gpt2", {"num_key_value_heads": 2}, "num_key_value_heads: expected nothing"),
        ("gpt2", {"hidden_act": "silu"}, r"hidden_act: .*activation_function \(gelu_new\), got silu"),
        ("Phi-4-mini", {"original_max_position_embeddings": None, "rope_scaling": {
            "type": "longrope", "short_factor": [1] * 3, "long_factor": [1] * 3, "original_max_position_embeddings": 16,
        }}, "expected it outside of the table"),
        ("Llama-3-8B", {"tie_word_embeddings": "no"}, "tie_word_embeddings: expected true or false, got 'no'"),
    ],
)  # fmt: skip
def test_places_that_contradict_each_other_are_refused_with_both_values(name: str, changes: dict, message: str) -> None:
    config = RECORDS[name]["published"]
    architecture_of(config)
    with pytest.raises(CheckpointError, match=message):
        architecture_of(config | changes)


def test_places_that_repeat_each_other_are_one() -> None:
    config = RECORDS["Llama-3.1-8B"]["published"]
    repeated = config["rope_scaling"] | {"rope_theta": config["rope_theta"]}
    twice = config | {"rope_parameters": repeated, "dtype": "torch.bfloat16"}
    plain, both = (architecture_of(c).decoder_kwargs["rope_inv_freq"] for c in (config, twice))
    assert np.array_equal(plain, both)
    whole = RECORDS["gemma-3-4b"]["published"]
    assert architecture_of(whole | {"hidden_size": 32}).decoder_kwargs.keys() == architecture_of(whole).decoder_kwargs.keys()
    assert "text_config" not in text_config({key: value for key, value in whole.items() if key != "architectures"})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Llama-3-8B", {"num_local_experts": 8}), ("Llama-3-8B", {"moe_intermediate_size": 16}),
        ("Llama-3-8B", {"attn_logit_softcapping": 50.0}), ("Llama-3-8B", {"clip_qkv": 8.0}), ("Llama-3-8B", {"alibi": True}),
        ("Llama-3-8B", {"logit_scale": 0.5}), ("Llama-3-8B", {"use_parallel_residual": True}),
        ("Llama-3-8B", {"qk_layernorm": True}), ("Llama-3-8B", {"attention_chunk_size": 8192}),
        ("Llama-3-8B", {"no_rope_layers": [1, 0]}), ("Llama-3-8B", {"use_mrope": True}), ("Llama-3-8B", {"mup_enabled": True}),
        ("Llama-3-8B", {"layer_types": ["full_attention", "sliding_attention"]}), ("Llama-3-8B", {"sliding_window": 16}),
        ("Llama-3-8B", {"rms_norm_add_unit_offset": True}), ("Llama-3-8B", {"use_bias": True}),
        ("Llama-3-8B", {"key_multiplier": 0.5}), ("Llama-3-8B", {"num_kv_shared_layers": 2}),
        ("Phi-4-mini", {"lm_head_bias": True}), ("Mistral-7B-v0.1", {"text_config": {"a": 1}}),
    ],
)  # fmt: skip
def test_keys_of_other_mathematics_are_refused_and_pass_where_they_change_nothing(name: str, changes: dict) -> None:
    config = RECORDS[name]["published"]
    (key, value), *_ = changes.items()
    with pytest.raises(CheckpointError, match=f"config.json: {key}: expected nothing, got"):
        architecture_of(config | changes)
    neutral: list[Any] = [None] + [n for n in (False, 0, 1.0) if key in ("logit_scale", "key_multiplier", "num_local_experts")]
    for nothing in neutral:
        architecture_of(config | {key: nothing})
    architecture_of(config | {"layer_types": ["full_attention"] * 2} if "sliding_window" not in config else config)


def test_keys_that_nothing_reads_are_named_once(tmp_path: Path) -> None:
    config = RECORDS["Llama-3-8B"]["published"] | {
        "my_note": "hello", "is_llama_config": True, "rope_interleaved": True, "other": [1],
        "rope_scaling": {"rope_type": "default", "factor": 8.0}, "ffn_dropout": 0.1, "unset": None,
    }  # fmt: skip
    folder = folder_of(config, tmp_path / "model")
    with pytest.warns(LoraCWarning) as notices:
        load_model(folder, progress=False)
    assert len(notices) == 1
    unread = "my_note, other, rope_scaling.factor (rope_type default)"
    assert f"config.json: {unread}: these keys have no effect" in str(notices[0].message)


@pytest.mark.parametrize(
    ("name", "table", "unread"),
    [
        ("Llama-3-8B", {"rope_type": "default", "rope_theta": 500000.0, "factor": 8.0},
         ["rope_parameters.factor (rope_type default)"]),
        ("gemma-3-1b", {"full_attention": {"rope_type": "default", "rope_theta": 1e6, "factor": 8.0}},
         ["rope_parameters.full_attention.factor (rope_type default)"]),
    ],
)  # fmt: skip
def test_keys_without_effect_are_found_where_a_family_has_its_tables(name: str, table: dict, unread: list[str]) -> None:
    config = RECORDS[name]["published"]
    family = next(family for family in FAMILIES if family.architecture == config["architectures"][0])
    assert rope_keys_without_effect({"rope_parameters": table}, family) == unread
