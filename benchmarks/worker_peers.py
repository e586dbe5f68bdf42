"""The peers' side of a comparison: transformers, PEFT and bitsandbytes; see worker.serve for the protocol."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from shapes import SHAPES
from worker import serve


def make_folder(task: dict[str, Any]) -> tuple[Callable[[int], None], dict[str, Any]]:
    """Write a model folder of the shape with random bfloat16 weights, for both sides."""
    torch.manual_seed(0)
    values = {name: value for name, value in SHAPES[task["shape"]].items() if name != "architectures"}
    config = transformers.AutoConfig.for_model(**values)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(task["folder"])
    return lambda _index: None, {}


def load(folder: str) -> torch.nn.Module:
    """The folder in NF4 with double quantization, bfloat16 compute."""
    nf4 = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    options = {"quantization_config": nf4, "dtype": torch.bfloat16, "device_map": {"": "cpu"}}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def padded_batches(task: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """The examples of the task's file, `batch` at a time, padded to the longest; -100 where there is no loss."""
    data = np.load(task["examples"])
    ends, batches = np.cumsum(data["lengths"]), []
    for first in range(0, len(ends), task["batch"]):
        rows = range(first, min(first + task["batch"], len(ends)))
        longest = max(int(data["lengths"][r]) for r in rows)
        ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full((len(rows), longest), -100)
        for i, r in enumerate(rows):
            n, prompt = int(data["lengths"][r]), int(data["prompts"][r])
            tokens = torch.from_numpy(data["ids"][ends[r] - n : ends[r]].astype(np.int64))
            ids[i, :n], mask[i, :n], labels[i, prompt:n] = tokens, 1, tokens[prompt:]
        batch = {"input_ids": ids, "labels": labels}
        batches.append(batch if bool(mask.all()) else batch | {"attention_mask": mask})
    return batches


def train(task: dict[str, Any]) -> tuple[Callable[[int], float], dict[str, Any]]:
    model = load(task["folder"])
    model.config.use_cache = False
    if task.get("recompute") == "layer":
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    lora = LoraConfig(r=task["rank"], lora_alpha=2 * task["rank"], target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    batches = padded_batches(task)

    def step(index: int) -> float:
        optimizer.zero_grad()
        loss = model(**batches[index % len(batches)]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return loss.item()

    return step, {"trained": sum(p.numel() for p in trained)}


def decode(task: dict[str, Any]) -> tuple[Callable[[int], int], dict[str, Any]]:
    """Greedy tokens after a prompt of one, so that every step decodes one token: `tokens` steps."""
    model = load(task["folder"]).eval()

    @torch.inference_mode()
    def run(_index: int) -> int:
        out = model(input_ids=torch.zeros((1, 1), dtype=torch.int64), use_cache=True)
        for _ in range(task["tokens"] - 1):
            token = out.logits[:, -1:].argmax(-1)
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        return int(out.logits[0, -1].argmax())

    return run, {}


def quantize(task: dict[str, Any]) -> tuple[Callable[[int], None], dict[str, Any]]:
    from bitsandbytes.functional import quantize_4bit

    values = torch.from_numpy(np.random.default_rng(0).standard_normal((task["rows"], task["rows"]), np.float32))

    def run(_index: int) -> None:
        quantize_4bit(values, quant_type="nf4", compress_statistics=True)

    return run, {}


def prepare(task: dict[str, Any]) -> tuple[Callable[[int], Any], dict[str, Any]]:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tasks = {"train": train, "decode": decode, "quantize": quantize, "make": make_folder}
    run, facts = tasks[task["task"]](task)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads"
    return run, facts | {"versions": versions}


if __name__ == "__main__":
    serve(prepare)
