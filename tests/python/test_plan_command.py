"""`lora-c plan`: what it counts of shapes and folders, what fits where, what it advises, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from command_lines import called

from lora_c.configs import LoraConfig, TrainConfig
from lora_c.demo.world import task
from lora_c.errors import ConfigError
from lora_c.model.device_list import devices
from lora_c.planning import subject_of_shape
from lora_c.planning.advice import advice
from lora_c.planning.cards import CARDS, card_named
from lora_c.planning.flops import flop_terms, mean_context
from lora_c.planning.plan import Place, make_plan

GIB = 1 << 30
HAS_GPU = any(device.name == "cuda" and device.usable for device in devices())


def plan(folder: Path, *words: str) -> dict[str, Any]:
    done = called(folder, ["plan", *words, "--seconds", "0", "--json"])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_lora_on_the_query_and_value_of_a_llama(tmp_path: Path) -> None:
    found = plan(tmp_path, "--shape", "llama-7b", "--method", "lora", "--r", "4", "--target-modules", "q_proj,v_proj")
    trained = 32 * 2 * 4 * (4096 + 4096)
    assert found["parameters"]["trained"] == trained == sum(term["value"] for term in found["parameters"]["terms"])
    assert found["parameters"]["total"] == 6_738_415_616 + trained
    memory = found["memory"]
    vectors = 4 * 65 * 4096
    assert memory["base"] == 2 * (6_738_415_616 - 65 * 4096) + vectors
    assert (memory["parameters"], memory["gradients"], memory["optimizer"]) == (4 * trained, 4 * trained, 8 * trained)
    assert memory["total"] == sum(term["value"] for term in memory["terms"])
    assert found["saved_bytes"] == 4 * trained and found["checkpoint_bytes"] == (8 + 2 * 4) * trained
    assert found["source"] == "LLaMA, arXiv:2302.13971, table 2"


def test_nf4_has_a_little_more_than_4_bits(tmp_path: Path) -> None:
    found = plan(tmp_path, "--shape", "llama-65b", "--method", "qlora")
    terms = {term["name"]: term["value"] for term in found["memory"]["terms"]}
    matrices = 65_285_660_672 - 2 * 32000 * 8192 - 161 * 8192
    bits = 8 * (terms["matrices of the layers"] + terms["scales"]) / matrices
    assert bits == pytest.approx(4.127, abs=1e-4) and 8 * terms["scales"] / matrices == pytest.approx(0.127, abs=1e-4)
    single = plan(tmp_path, "--shape", "llama-65b", "--no-double-quant")
    scales = {term["name"]: term["value"] for term in single["memory"]["terms"]}["scales"]
    assert 8 * (scales - terms["scales"]) / matrices == pytest.approx(0.373, abs=1e-4)


@pytest.mark.parametrize("method", ["full", "head", "lora", "qlora"])
def test_every_method_of_every_kind_of_shape(tmp_path: Path, method: str) -> None:
    for shape in ("gpt2", "llama-3.2-1b", "qwen3-0.6b", "gemma-3-1b", "smollm2-135m"):
        found = plan(tmp_path, "--shape", shape, "--method", method)
        memory = found["memory"]
        assert memory["total"] == sum(term["value"] for term in memory["terms"]) and found["method"] == method
        assert found["parameters"]["trained"] * 4 == memory["parameters"]
        assert found["flops_per_token"]["total"] == sum(term["value"] for term in found["flops_per_token"]["terms"])


def test_the_work_of_a_token() -> None:
    config = TrainConfig(method="full", recompute="none", max_seq_length=100)
    subject = subject_of_shape("llama-7b", config, None)
    matrices, head, width = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 32000 * 4096, 32 * 4096
    total = sum(term.value for term in flop_terms(subject, "none"))
    assert total == 3 * 2 * (matrices + head) + 14 * width * 50.5  # forward, and twice as much backward
    lora = subject_of_shape("llama-7b", config.model_copy(update={"method": "lora"}), LoraConfig(r=8))
    adapter = lora.model.num_parameters(only_trainable=True)
    total = sum(term.value for term in flop_terms(lora, "none"))
    assert total == 2 * 2 * (matrices + head) + 14 * width * 50.5 + 6 * adapter
    again = sum(term.value for term in flop_terms(lora, "layer")) - total
    assert again == 2 * matrices + 4 * width * 50.5 + 2 * adapter
    everywhere = subject_of_shape("llama-7b", lora.config, LoraConfig(r=8, target_modules="all-linear"))
    again = sum(t.value for t in flop_terms(everywhere, "attention")) - sum(t.value for t in flop_terms(everywhere, "none"))
    assert again == 2 * 32 * 4 * 4096**2 + 2 * 32 * 4 * 8 * 2 * 4096  # q, k, v and o, and their A and B
    only = subject_of_shape("llama-7b", config.model_copy(update={"method": "head"}), None)
    assert sum(t.value for t in flop_terms(only, "none")) == 2 * matrices + 4 * width * 50.5 + 3 * 2 * head
    upper = subject_of_shape("llama-7b", config, LoraConfig(r=8, layers_to_transform=[31]))
    upper = upper.with_config(config.model_copy(update={"method": "lora"}))
    assert {t.name: t.value for t in flop_terms(upper, "none")}["backward, attention"] == 10 * 4096 * 50.5


def test_windows_bound_what_a_token_attends_to() -> None:
    long = TrainConfig(method="lora", max_seq_length=8192)
    half = mean_context(subject_of_shape("llama-3.1-8b", long, LoraConfig()))
    assert half == 8193 / 2
    windowed = mean_context(subject_of_shape("gemma-2-2b", long, LoraConfig()))  # every other layer has a window of 4,096
    assert windowed == (8193 / 2 + 4096 - 4096 * 4095 / (2 * 8192)) / 2


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("T4", "T4"), ("nvidia tesla t4", "T4"), ("4090", "RTX 4090"), ("rtx-4070 ti super", "RTX 4070 Ti Super"),
        ("GeForce RTX 3060", "RTX 3060"), ("a100", "A100 80GB"), ("A100-40GB", "A100 40GB"), ("h100", "H100"),
        ("L40S", "L40S"), ("b200", "B200"),
    ],
)  # fmt: skip
def test_a_card_by_its_name(spelled: str, name: str) -> None:
    assert card_named(spelled).name == name


def test_the_table_of_cards() -> None:
    assert len({card.name for card in CARDS}) == len(CARDS) and all("NVIDIA" in card.source for card in CARDS)
    assert all(card_named(card.name) is card for card in CARDS)
    t4 = card_named("t4")
    assert (t4.memory_gib, t4.bandwidth, t4.capability) == (16, 320, 7.5) and 14 * GIB < t4.usable_bytes < 16 * GIB
    with pytest.raises(
        ConfigError, match="device: expected a name that .*, or a card: T4, .*; got 'RTX 4091', did you mean 'RTX 4090'"
    ):
        card_named("RTX 4091")


def test_what_fits_into_a_card(tmp_path: Path) -> None:
    words = ["--shape", "llama-3.1-8b", "--batch-size", "1", "--max-seq-length", "512"]
    small, large = plan(tmp_path, *words, "--device", "RTX 3080"), plan(tmp_path, *words, "--device", "H100")
    assert small["place"]["card"]["capability"] == 8.6 and small["place"]["name"] == "RTX 3080"
    assert large["fits"] is True and large["change"] is None and large["speed"] is None
    dense = plan(tmp_path, *words, "--method", "lora", "--device", "T4")
    assert dense["fits"] is False and dense["change"]["options"] == {"method": "qlora"}
    assert dense["change"]["memory_bytes"] <= dense["place"]["free_bytes"]
    # The same steps in smaller passes come before any other change.
    nearly = plan(tmp_path, "--shape", "llama-7b", "--method", "lora", "--device", "T4")
    assert nearly["change"]["options"] == {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    full = called(tmp_path, ["plan", "--shape", "llama-7b", "--method", "full", "--device", "4090", "--seconds", "0"])
    assert "makes it fit; --method lora and qlora, which train an adapter, take less" in " ".join(full.stdout.split())


def test_a_plan_without_any_limit() -> None:
    subject = subject_of_shape("smollm2-135m", TrainConfig(), LoraConfig())
    found = make_plan(subject, Place("somewhere", None))
    assert found.fits is None and found.remedy is None and found.recompute == "none"
    for share, chosen in ((1.0, "attention"), (0.6, "layer")):  # as recompute=auto of a run chooses
        tight = make_plan(subject, Place("here", int(share * found.memory.total)))
        assert tight.recompute == chosen and tight.fits


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    file = tmp_path / "chat.jsonl"
    file.write_text("".join(json.dumps(example) + "\n" for example in task(1, 40, 1)[0]), encoding="utf-8")
    return file


def test_data_give_the_steps_and_the_tokens(tmp_path: Path, chat: Path, on_cpu: None) -> None:
    found = plan(tmp_path, "--model", "demo", "--data", str(chat), "--epochs", "3", "--batch-size", "4")
    assert found["steps"] == 3 * math.ceil(40 / 4) and "tokens to learn" in found["advice"][0]
    longest = plan(tmp_path, "--model", "demo", "--batch-size", "4")
    assert found["memory"]["activations"] < longest["memory"]["activations"] and longest["steps"] is None


def test_the_time_of_a_step_is_measured(tmp_path: Path, chat: Path, on_cpu: None) -> None:
    done = called(tmp_path, ["plan", "--model", "demo", "--data", str(chat), "--seconds", "0.2", "--json"])
    found = json.loads(done.stdout)
    speed = found["speed"]
    assert speed["step_seconds"] == pytest.approx(speed["pass_seconds"] + speed["update_seconds"])
    assert found["seconds"] == pytest.approx(found["steps"] * speed["step_seconds"]) and "the whole model" in speed["how"]


def test_advice_follows_from_the_data() -> None:
    config = TrainConfig(method="lora", per_device_train_batch_size=8, gradient_accumulation_steps=8)
    few = subject_of_shape("smollm2-135m", config, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    trained = few.model.num_parameters(only_trainable=True)
    said = advice(few, 4 * trained)
    assert f"{trained:,} trained parameters" in said[0] and "r=16" in said[0]
    assert "q_proj, v_proj" in said[1] and "all-linear" in said[1] and "64 sequences" in said[2] and "below 32" in said[2]
    assert "rank 8 is enough" in advice(few, trained)[0]
    calm = subject_of_shape("smollm2-135m", TrainConfig(method="lora"), LoraConfig())
    assert advice(calm, None) == [] and len(advice(calm, 1000)) == 1
    assert advice(subject_of_shape("smollm2-135m", config.model_copy(update={"method": "full"}), None), 1000) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected --model PATH or --shape NAME, got neither"),
        (["--model", "demo", "--shape", "gpt2"], "got both"),
        (["--shape", "gpt5"], "got 'gpt5', did you mean 'gpt2'?"),
        (["--shape", "gpt2", "--device", "Voodoo 2"], "--device: expected a name that `lora-c devices` lists, or a card"),
        (["--shape", "gpt2", "--device", "cuda:99"], "cuda: expected" if not HAS_GPU else "--device: expected one of"),
        (["--shape", "gpt2", "--data", "x.jsonl"], "--data: expected --model beside it"),
        (["--shape", "gpt2", "--target-modules", "q_proj"], "target_modules: expected names among c_attn"),
        (["--shape", "gpt2", "--rank", "0"], "r: "),
        (["--shape", "gpt2", "--seconds", "nan"], "expected a finite number, got nan"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_what_is_refused(tmp_path: Path, words: list[str], said: str) -> None:
    done = called(tmp_path, ["plan", *words])
    assert done.returncode in (1, 2) and said.lower() in done.stderr.lower() and "Traceback" not in done.stderr, done.stderr
    assert done.stdout == ""


def test_it_takes_the_settings_of_a_run_and_writes_nothing(tmp_path: Path, chat: Path, on_cpu: None) -> None:
    (tmp_path / "run.yaml").write_text(
        f"model: demo\ndata: {chat}\nr: 3\noutput_dir: out\nsamples: 1\nresize_embedding: false\n", encoding="utf-8"
    )
    found = plan(
        tmp_path, "--config", "run.yaml", "--paged-dir", "paged", "--optim", "paged_adamw_8bit", "--activation-offload"
    )
    assert found["parameters"]["trained"] == 36_480 and found["memory"]["offloaded"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"run.yaml", "chat.jsonl"}


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "LORA,PREFIX_TUNING"])
def test_virtual_tokens_beyond_the_context_are_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "It was warm."}\n')
    words = ["--model", "demo", "--peft-type", kind, "--num-virtual-tokens", "512"]
    for command in (["plan"], ["train", "--data", "data.jsonl", "--output-dir", "out"]):
        done = called(tmp_path, [*command, *words])
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr
        said = done.stderr.splitlines()[-1]
        assert "expected fewer than the model's context of 512 tokens, towards which they count, got 512" in said, done.stderr
