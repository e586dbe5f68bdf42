"""Adapters both ways between lora-c and PEFT: configurations of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from peer_models import IDS, close, peer_logits

import lora_c as lc

SMALL = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 96, "attention_bias": True, "mlp_bias": True}
CONFIGS = [
    {},
    {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": None},
    {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 3}, "alpha_pattern": {".*1.*": 5}},
    {"target_modules": r".*\.1\.(self_attn\.(q|k)_proj|mlp\.up_proj)"},
    {"exclude_modules": ["k_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    {"use_dora": True, "r": 2, "lora_alpha": 5},
    {"bias": "all"},
    {"bias": "lora_only", "target_modules": ["v_proj"]},
    {"modules_to_save": ["lm_head"]},
    {"target_modules": ["lm_head", "q_proj"], "r": 3},
    {"target_modules": ["embed_tokens", "v_proj"], "use_rslora": True},
    {"target_modules": ["embed_tokens", "lm_head"], "r": 2},
    {"modules_to_save": ["embed_tokens", "norm"]},
    {"trainable_token_indices": [5, 9, 30]},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora"},
    {"init_lora_weights": "orthogonal"},
]


def moved(model: lc.Model) -> np.ndarray:
    rng = np.random.default_rng(0)
    for parameter in model.trainable_parameters():
        parameter.data[...] += 0.05 * rng.standard_normal(parameter.shape)
    return model.decoder.logits(IDS)


def load_peer(base: Path, adapter: Path) -> torch.nn.Module:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, adapter).eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_ours_there_and_theirs_here(llama_folder, tmp_path: Path, options: dict, tied: bool) -> None:
    base = llama_folder(tie_word_embeddings=tied, **SMALL)
    model = lc.load_model(base)
    model.add_adapter(lc.LoraConfig(**options))
    expected = moved(model)
    model.save_adapter(tmp_path / "ours")
    theirs = load_peer(base, tmp_path / "ours")
    close(peer_logits(theirs), expected, 1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = lc.load_model(base)
    again.load_adapter(tmp_path / "theirs")
    close(again.decoder.logits(IDS), expected, 1e-5)
    merged = model.merge()
    merged.save(tmp_path / "merged")
    close(peer_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()), expected, 1e-5)


GPT2 = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=96, n_positions=64, initializer_range=0.2)
PHI3 = transformers.Phi3Config(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=96,
    max_position_embeddings=128, original_max_position_embeddings=128, initializer_range=0.2, pad_token_id=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (GPT2, {"target_modules": None}),
        (GPT2, {"use_dora": True, "r": 3}),
        (GPT2, {"modules_to_save": ["mlp.c_proj", "ln_f"], "target_modules": ["c_attn"], "bias": "lora_only"}),
        (GPT2, {"bias": "all", "trainable_token_indices": {"wte": [4, 8]}, "target_modules": ["c_fc"]}),
        (PHI3, {"target_modules": ["qkv_proj", "down_proj"]}),
        (PHI3, {"use_dora": True, "lora_alpha": 5}),
        (PHI3, {"modules_to_save": ["gate_up_proj", "lm_head"], "target_modules": ["o_proj"]}),
    ],
    ids=str,
)
def test_families_with_matrices_of_several_parts(tmp_path: Path, config: object, options: dict) -> None:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).eval().save_pretrained(tmp_path / "base")
    model = lc.load_model(tmp_path / "base")
    model.add_adapter(lc.LoraConfig(**options))
    expected = moved(model)
    model.save_adapter(tmp_path / "ours")
    theirs = load_peer(tmp_path / "base", tmp_path / "ours")
    close(peer_logits(theirs), expected, 1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = lc.load_model(tmp_path / "base")
    again.load_adapter(tmp_path / "theirs")
    close(again.decoder.logits(IDS), expected, 1e-5)
    model.merge().save(tmp_path / "merged")
    close(peer_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()), expected, 1e-5)


@pytest.mark.parametrize("kind", ["pissa", "olora", "loftq"])
def test_a_quantized_base_of_its_own_there(llama_folder, tmp_path: Path, kind: str) -> None:
    model = lc.load_model(llama_folder(), quantize="nf4")
    model.add_adapter(r=4, lora_alpha=6, init_lora_weights=kind)
    expected = moved(model)
    model.save_adapter(tmp_path / "ours")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).train()
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    close(peer_logits(theirs), expected)


def test_the_folder_of_a_run_loads_there_after_a_move(llama_folder, tmp_path: Path) -> None:
    from click.testing import CliRunner
    from tokenizers import Tokenizer, models, pre_tokenizers

    from lora_c.cli import cli

    base = llama_folder(**SMALL)
    vocabulary = Tokenizer(models.WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=vocabulary, eos_token="w2")
    tokenizer.save_pretrained(base)
    (tmp_path / "d.txt").write_text("w3 w4 w5 w6 w7 w8 " * 20)
    words = ["train", "--model", base, "--data", tmp_path / "d.txt", "--output-dir", tmp_path / "run", "--method", "lora"]
    done = CliRunner().invoke(cli, [str(word) for word in [*words, "--max-steps", 3, "--learning-rate", "1e-1"]])
    assert done.exit_code == 0, done.exception
    elsewhere = (tmp_path / "run").rename(tmp_path / "elsewhere")
    ours = lc.load_model(base)
    ours.load_adapter(elsewhere)
    close(peer_logits(load_peer(base, elsewhere)), ours.decoder.logits(IDS), 1e-5)
    assert transformers.AutoTokenizer.from_pretrained(elsewhere)("w3 w4")["input_ids"] == [3, 4]


IA3_CONFIGS = [
    {},
    {"target_modules": "all-linear"},
    {"target_modules": "all-linear", "feedforward_modules": ["q_proj", "down_proj"], "exclude_modules": ["up_proj"]},
    {"target_modules": r".*\.1\..*_proj", "feedforward_modules": r".*o_proj", "init_ia3_weights": False},
    {"modules_to_save": ["lm_head", "norm"]},
]


@pytest.mark.parametrize("options", IA3_CONFIGS, ids=str)
def test_ia3_there_and_here(llama_folder, tmp_path: Path, options: dict) -> None:
    base = llama_folder(tie_word_embeddings=False, **SMALL)
    model = lc.load_model(base)
    model.add_adapter(lc.IA3Config(**options))
    expected = moved(model)
    model.save_adapter(tmp_path / "ours")
    theirs = load_peer(base, tmp_path / "ours")
    close(peer_logits(theirs), expected, 1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = lc.load_model(base)
    again.load_adapter(tmp_path / "theirs")
    close(again.decoder.logits(IDS), expected, 1e-5)
    model.merge().save(tmp_path / "merged")
    close(peer_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()), expected, 1e-5)


@pytest.mark.parametrize("options", [{}, {"target_modules": "all-linear"}], ids=str)
def test_ia3_of_gpt2_there(tmp_path: Path, options: dict) -> None:
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(GPT2).save_pretrained(tmp_path / "base")
    model = lc.load_model(tmp_path / "base")
    model.add_adapter(lc.IA3Config(**options))
    expected = moved(model)
    model.save_adapter(tmp_path / "ours")
    close(peer_logits(load_peer(tmp_path / "base", tmp_path / "ours")), expected, 1e-5)
