"""Adapters of prompt tuning and prefix tuning: options, start values, places, refusals, generation beside others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_values import write_values
from safetensors.numpy import load_file, save_file

import lora_c as lc
from lora_c import reference
from lora_c.errors import AdapterError, ConfigError, DataError
from lora_c.inspection import inspect_path
from lora_c.notices import LoraCWarning

IDS = np.array([3, 17, 9, 40, 5, 3, 22, 31], np.int32)
LONG: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
KINDS = {"PROMPT_TUNING": lc.PromptTuningConfig, "PREFIX_TUNING": lc.PrefixTuningConfig}


@pytest.fixture
def model(tiny_model_dir: Path) -> lc.Model:
    return lc.load_model(tiny_model_dir, progress=False)


def reference_logits(model: lc.Model, extra: dict[str, np.ndarray]) -> np.ndarray:
    weights = dict(model.weights) | extra
    return reference.decoder_logits(weights, model.decoder.config, IDS, [0, len(IDS)])


# -- options ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("PROMPT_TUNING", {"num_virtual_tokens": 0}, "num_virtual_tokens: expected greater than 0|num_virtual_tokens: .*0"),
        ("PROMPT_TUNING", {"prompt_tuning_init": "TEXT"}, "prompt_tuning_init_text: expected a text with"),
        ("PROMPT_TUNING", {"prompt_tuning_init_text": "w3"}, "prompt_tuning_init_text: expected a text with"),
        ("PROMPT_TUNING", {"tokenizer_name_or_path": "here"}, "tokenizer_name_or_path: expected none without a text"),
        ("PROMPT_TUNING", {"prompt_tuning_init": "FIRST"}, "prompt_tuning_init: expected 'RANDOM', 'TEXT' or 'SAMPLE_VOCAB'"),
        ("PROMPT_TUNING", {"task_type": "SEQ_2_SEQ_LM"}, "task_type: expected CAUSAL_LM or SEQ_CLS, got 'SEQ_2_SEQ_LM'"),
        ("PROMPT_TUNING", {"num_transformer_submodules": 2}, "num_transformer_submodules: expected 1, got 2"),
        ("PROMPT_TUNING", {"modules_to_save": ["lm_head"]}, "modules_to_save: expected None"),
        ("PROMPT_TUNING", {"r": 8}, "r: unknown option"),
        ("PREFIX_TUNING", {"encoder_hidden_size": 4}, "encoder_hidden_size: expected none without prefix_projection"),
        ("PREFIX_TUNING", {"init_weights": "ones"}, "init_weights: expected 'zero'"),
        ("PREFIX_TUNING", {"inference_mode": True}, "inference_mode: expected False"),
    ],
)
def test_options_are_checked(model: lc.Model, kind: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        model.add_adapter(peft_type=kind, **options)
    with pytest.raises(ConfigError, match=said):
        KINDS[kind](**options)
    assert model.adapter_names == []


def test_constants_of_peft_are_taken() -> None:
    config = lc.PromptTuningConfig(
        task_type="CAUSAL_LM", peft_type="PROMPT_TUNING", num_virtual_tokens=3, inference_mode=False
    )
    assert config.num_virtual_tokens == 3 and config.modules_to_save is None
    with pytest.raises(ConfigError, match="peft_type: expected 'PREFIX_TUNING', got 'LORA'"):
        lc.PrefixTuningConfig(peft_type="LORA")


# -- what they begin with ---------------------------------------------------------------------------------------------------


def test_start_values(model: lc.Model) -> None:
    embedding = np.asarray(model.weights["embed_tokens"], np.float32)

    def values(**options: Any) -> np.ndarray:
        model.add_adapter(**{"num_virtual_tokens": 5, "peft_type": "PROMPT_TUNING"} | options)
        (parameter,) = model.trainable_parameters()
        model.delete_adapter()
        return parameter.data

    drawn = values(num_virtual_tokens=60)
    assert abs(drawn.mean()) < 0.1 and abs(drawn.std() - 1) < 0.1
    assert np.array_equal(values(), values()) and not np.array_equal(values(), values(seed=1))
    assert np.array_equal(values(), drawn[:5])  # of one stream
    text = values(prompt_tuning_init="TEXT", prompt_tuning_init_text="w7 w8 w9")
    assert np.array_equal(text, embedding[[7, 8, 9, 7, 8]])
    cut = values(prompt_tuning_init="TEXT", prompt_tuning_init_text="w7 w8 w9", num_virtual_tokens=2)
    assert np.array_equal(cut, embedding[[7, 8]])
    sampled = values(prompt_tuning_init="SAMPLE_VOCAB")
    assert all((row == embedding).all(axis=1).any() for row in sampled)
    assert not values(peft_type="PREFIX_TUNING", init_weights="zero").any()


def test_an_encoder_begins_as_linear_layers_of_torch_do(model: lc.Model) -> None:
    model.add_adapter(lc.PrefixTuningConfig(num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=25))
    e, w1, b1, w2, b2 = (p.data for p in model.trainable_parameters())
    assert [a.shape for a in (e, w1, b1, w2, b2)] == [(4, 16), (25, 16), (25,), (64, 25), (64,)]
    for array, fan_in in ((w1, 16), (b1, 16), (w2, 25), (b2, 25)):
        assert 0.8 / fan_in**0.5 < np.abs(array).max() <= 1 / fan_in**0.5
    model.add_adapter(lc.PrefixTuningConfig(num_virtual_tokens=4, prefix_projection=True, init_weights="zero"), "zero")
    e, w1, b1, w2, b2 = (p.data for p in model.trainable_parameters())
    assert w1.shape == (16, 16) and w1.any() and b1.any() and not w2.any() and not b2.any()


def test_a_tokenizer_of_another_folder_reads_the_text(model: lc.Model, tiny_model_dir: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "w7", "num_virtual_tokens": 1}
    model.add_adapter(lc.PromptTuningConfig(tokenizer_name_or_path=str(tiny_model_dir), **options))
    assert np.array_equal(model.trainable_parameters()[0].data[0], model.weights["embed_tokens"][7])
    with pytest.raises(ConfigError, match="prompt_tuning_init_text: expected a text with tokens"):
        model.add_adapter(lc.PromptTuningConfig(**options | {"prompt_tuning_init_text": ""}), "empty")
    file = json.loads((tiny_model_dir / "tokenizer.json").read_text())
    file["model"]["vocab"] |= {"w7": 900, "x": 7}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(
        ConfigError, match=r"model's tokenizer \(its embedding has 64 rows\), got one that gives the token 900"
    ):
        model.add_adapter(lc.PromptTuningConfig(tokenizer_name_or_path=str(tmp_path), **options), "other")


# -- what they do -----------------------------------------------------------------------------------------------------------


def test_logits_are_those_of_the_reference(model: lc.Model) -> None:
    model.add_adapter(lc.PromptTuningConfig(num_virtual_tokens=3))
    (prompt,) = model.trainable_parameters()
    assert np.abs(model.decoder.logits(IDS) - reference_logits(model, {"prompt": prompt.data})).max() < 1e-5
    model.add_adapter(lc.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True), "prefix")
    made = reference.prefix_encoder(*(p.data for p in model.trainable_parameters()))
    assert np.abs(model.decoder.logits(IDS) - reference_logits(model, {"prefix": made})).max() < 1e-5


def test_gradients_of_an_encoder_are_those_of_the_reference(model: lc.Model) -> None:
    model.add_adapter(lc.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=5))
    parts = model.trainable_parameters()
    model.add_adapter(lc.PrefixTuningConfig(num_virtual_tokens=3), "plain")
    (plain,) = model.trainable_parameters()
    write_values(plain, reference.prefix_encoder(*(p.data for p in parts)))
    batch = (IDS, [0, 3, 8], np.roll(IDS, -1), np.ones(8, np.float32))
    loss = model.decoder.forward_backward(*batch)
    model.set_adapter("default")
    assert model.decoder.forward_backward(*batch) == pytest.approx(loss, rel=1e-6)
    want = reference.prefix_encoder_backward(plain.grad, *(p.data for p in parts[:4]))
    for part, gradient in zip(parts, want, strict=True):
        np.testing.assert_allclose(part.grad, gradient, atol=2e-5 * np.abs(gradient).max(), err_msg=part.name)


def test_a_prefix_is_what_will_be_saved_in_every_precision(model: lc.Model, tmp_path: Path) -> None:
    """What makes it computes in float32: the saved prefix gives the same, up to a rounding."""
    model.add_adapter(lc.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True), "made")
    model.save_adapter(tmp_path / "saved")
    model.load_adapter(tmp_path / "saved", "saved")
    for precision in ("exact", "fast"):
        model.decoder.precision = precision
        found = []
        for name in ("made", "saved"):
            model.set_adapter(name)
            found.append(model.decoder.logits(IDS))
        assert np.abs(found[0] - found[1]).max() < 1e-5, precision


def test_the_context_is_shorter_by_them(model: lc.Model) -> None:
    assert model.context_length == 64
    model.add_adapter(lc.PromptTuningConfig(num_virtual_tokens=60))
    assert (model.context_length, model.context_with(None), model.context_with("default")) == (4, 64, 4)
    assert len(model.decoder.logits([3, 4, 5, 6])) == 4
    with pytest.raises(ValueError, match=r"64 tokens in a segment .* got 65, 60 of them virtual"):
        model.decoder.logits([3, 4, 5, 6, 7])
    with pytest.raises(DataError, match="context of 4, got 4"):
        model.generate([3, 4, 5, 6])
    assert len(model.generate([3, 4], max_new_tokens=9, ignore_eos=True).split()) == 2
    model.set_adapter(None)
    assert model.context_length == 64
    with pytest.raises(AdapterError, match="num_virtual_tokens: expected fewer than the model's context of 64 tokens"):
        model.add_adapter(lc.PromptTuningConfig(num_virtual_tokens=64), "all")


def test_counts_and_what_is_shown(model: lc.Model) -> None:
    base = model.num_parameters()
    model.add_adapter(lc.PromptTuningConfig(num_virtual_tokens=3))
    assert model.num_parameters(only_trainable=True) == 3 * 32 == model.num_parameters() - base
    assert "PROMPT_TUNING" in repr(model)
    model.add_adapter(lc.PrefixTuningConfig(num_virtual_tokens=3), "prefix")
    assert model.num_parameters(only_trainable=True) == 3 * 2 * 2 * 16
    model.set_adapter(None)
    assert model.num_parameters() == base and model.decoder.virtual_tokens == 0


def test_what_neither_can_be(model: lc.Model, tmp_path: Path, tiny_model_dir: Path) -> None:
    model.add_adapter(lc.PromptTuningConfig(num_virtual_tokens=3))
    model.add_adapter(lc.PrefixTuningConfig(num_virtual_tokens=3), "prefix")
    model.add_adapter(lc.LoraConfig(r=2), "lora")
    with pytest.raises(AdapterError, match="expected one adapter with virtual tokens, got 'default' and 'prefix'"):
        model.set_adapter(["default", "prefix"])
    for name in ("default", "prefix", ["lora", "prefix"]):
        model.set_adapter(name)
        for merge in (model.merge, model.merge_adapter):
            with pytest.raises(AdapterError, match=r"expected an adapter that changes weights, got one with 3 virtual tokens"):
                merge()
        for format in ("mlx", "gguf"):
            with pytest.raises(AdapterError, match="expected (an adapter of LoRA, got one of P|format='peft' for a stack)"):
                model.save_adapter(tmp_path / format, format=format)
    with pytest.raises(AdapterError, match="adapters: expected adapters of LoRA, got one of PROMPT_TUNING"):
        model.add_weighted_adapter(["lora", "default"], [0.5, 0.5], "both")
    trained = lc.load_model(tiny_model_dir, progress=False, trainable="head")
    with pytest.raises(AdapterError, match="PrefixTuningConfig: expected a frozen base, got one that trains lm_head"):
        trained.add_adapter(lc.PrefixTuningConfig(num_virtual_tokens=3))


# -- files ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_again(model: lc.Model, tmp_path: Path, kind: str, dtype: Any) -> None:
    model.add_adapter(peft_type=kind, num_virtual_tokens=3)
    before = model.decoder.logits(IDS)
    model.save_adapter(tmp_path / "saved", dtype=dtype)
    model.load_adapter(tmp_path / "saved", "again")
    model.set_adapter("again")
    assert np.abs(model.decoder.logits(IDS) - before).max() <= (0 if dtype == "float32" else 0.2)
    report = inspect_path(tmp_path / "saved")
    assert report.facts["method"] == kind and report.facts["virtual tokens"] == 3
    assert "adapted matrices" not in report.facts and not report.problems


def test_of_a_stack_each_in_its_folder(model: lc.Model, tmp_path: Path, tiny_model_dir: Path) -> None:
    model.add_adapter(lc.LoraConfig(r=2, init_lora_weights=False), "lora")
    model.add_adapter(lc.PromptTuningConfig(num_virtual_tokens=3), "prompt")
    model.set_adapter(["lora", "prompt"])
    before = model.decoder.logits(IDS)
    model.save_adapter(tmp_path / "saved")
    again = lc.load_model(tiny_model_dir, progress=False)
    again.load_adapter(tmp_path / "saved", "both")
    assert np.array_equal(again.decoder.logits(IDS), before) and again.context_length == 61


def test_files_that_are_refused_or_told_of(model: lc.Model, tmp_path: Path) -> None:
    model.add_adapter(lc.PrefixTuningConfig(num_virtual_tokens=3))
    model.save_adapter(tmp_path / "saved")
    file, tensors = tmp_path / "saved/adapter_config.json", tmp_path / "saved/adapter_model.safetensors"
    written, prefix = json.loads(file.read_text()), load_file(tensors)["prompt_embeddings"]

    def refused(match: str, **changes: Any) -> None:
        file.write_text(json.dumps({key: v for key, v in (written | changes).items() if v != "gone"}))
        with pytest.raises(AdapterError, match=match):
            model.load_adapter(tmp_path / "saved", "again")

    refused("num_virtual_tokens: expected a number, got none", num_virtual_tokens="gone")
    refused("num_virtual_tokens: .*got True", num_virtual_tokens=True)
    refused(r"expected shape \(4, 64\), got \(3, 64\)", num_virtual_tokens=4)
    refused("num_transformer_submodules: expected 1, of a decoder, got 2", num_transformer_submodules=2)
    refused(r"expected shape \(3, 32\), got \(3, 64\)", peft_type="PROMPT_TUNING")
    file.write_text(json.dumps(written | {"of_tomorrow": 3}))
    with pytest.warns(LoraCWarning, match="of_tomorrow: no effect"):
        model.load_adapter(tmp_path / "saved", "tomorrow")
    save_file({"prompt_embeddings": prefix, "more": prefix}, tensors)
    refused("expected only what its configuration asks for, got more")
    save_file({"other": prefix}, tensors)
    refused("expected the tensors that its configuration asks for, got none for prompt_embeddings")
    save_file({"prompt_embeddings": prefix * np.float32(np.inf)}, tensors)
    refused("expected finite numbers")


# -- beside others in a batch -----------------------------------------------------------------------------------------------


def test_side_by_side_in_a_batch_as_one_by_one(model: lc.Model) -> None:
    model.add_adapter(lc.PromptTuningConfig(num_virtual_tokens=5), "prompt")
    model.add_adapter(lc.PrefixTuningConfig(num_virtual_tokens=7, prefix_projection=True), "prefix")
    model.add_adapter(lc.LoraConfig(r=3, lora_alpha=24, init_lora_weights=False, target_modules="all-linear"), "lora")
    model.set_adapter(["lora", "prompt"])
    names = ["prompt", "lora", None, "prefix", "lora+prompt", "prompt", "prefix", None]
    alone = []
    for name in names:
        model.set_adapter(name)
        alone.append(model.generate("w3 w4 w5", **LONG))
    assert len(set(alone)) == 5
    model.set_adapter("lora")
    batch = lc.Batch(model, max_tokens=15)
    answers = [batch.add("w3 w4 w5", adapter=name, **LONG) for name in names]
    batch.run()
    assert [answer.text for answer in answers] == alone
    assert model.active_adapter == "lora" and model.decoder.virtual_tokens == 0


def test_an_adapter_that_is_younger_than_the_cache_waits_for_a_larger_one(model: lc.Model) -> None:
    expected = model.generate("w3 w4", **LONG)
    batch = lc.Batch(model, max_tokens=14)
    first = batch.add("w3 w4", **LONG)
    batch.step()
    model.add_adapter(lc.PromptTuningConfig(num_virtual_tokens=9), "prompt")
    with_prompt = model.generate("w3 w4", **LONG)
    model.set_adapter(None)
    second = batch.add("w3 w4", adapter="prompt", **LONG)
    batch.step()
    assert len(first.ids) == 2 and not second.ids
    batch.run()
    assert (first.text, second.text) == (expected, with_prompt) and first.text != second.text


def test_an_answer_ends_where_the_context_does(model: lc.Model) -> None:
    model.add_adapter(lc.PrefixTuningConfig(num_virtual_tokens=50), "prefix")
    batch = lc.Batch(model)
    long = batch.add("w3 w4", adapter=None, max_new_tokens=100, ignore_eos=True)
    short = batch.add("w3 w4", adapter="prefix", max_new_tokens=100, ignore_eos=True)
    with pytest.raises(DataError, match="context of 14, got 20"):
        batch.add([3] * 20, adapter="prefix")
    batch.run()
    assert (len(long.ids), len(short.ids)) == (62, 12)


def test_a_sequence_keeps_what_it_began_with(model: lc.Model) -> None:
    base = model.decoder.logits(IDS)
    model.add_adapter(lc.PrefixTuningConfig(num_virtual_tokens=4))
    whole = model.decoder.logits(IDS)
    cache = model.decoder.new_cache(20)
    model.decoder.decode(cache, IDS[:5])
    model.set_adapter(None)
    assert cache.length() == 5
    assert np.abs(model.decoder.decode(cache, IDS[5:]) - whole[-1]).max() < 1e-5
    cache.truncate(0, 0)
    assert np.abs(model.decoder.decode(cache, IDS) - base[-1]).max() < 1e-5
