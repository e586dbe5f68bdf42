"""lora-c's side of a comparison; see worker.serve for the protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from worker import serve

import lora_c as lc
from lora_c.data import Sample
from lora_c.data.batching import PackedBatch, pack


def adapted(task: dict[str, Any]) -> lc.Model:
    model = lc.load_model(task["folder"], quantize="nf4", progress=False)
    model.add_adapter(lc.LoraConfig(r=task["rank"], lora_alpha=2 * task["rank"], target_modules="all-linear"))
    model.decoder.precision = task.get("precision", "fast")  # as in training
    model.decoder.recompute = task.get("recompute", "none")
    model.decoder.activation_dtype = task.get("activation_dtype", "float32")
    return model


def batches_of(task: dict[str, Any]) -> list[PackedBatch]:
    """The examples of the task's file, `batch` at a time, packed behind each other without padding."""
    data = np.load(task["examples"])
    ends = np.cumsum(data["lengths"])
    samples = []
    for end, length, prompt in zip(ends, data["lengths"], data["prompts"], strict=True):
        mask = (np.arange(length) >= prompt).astype(np.float32)
        samples.append(Sample(data["ids"][end - length : end].astype(np.int32), mask))
    return [pack(samples[i : i + task["batch"]]) for i in range(0, len(samples), task["batch"])]


def train(task: dict[str, Any]) -> tuple[Callable[[int], float], dict[str, Any]]:
    model = adapted(task)
    optimizer = lc.AdamW(model.trainable_parameters(), lr=1e-4)
    batches = batches_of(task)

    def step(index: int) -> float:
        batch = batches[index % len(batches)]
        optimizer.zero_grad()
        loss = model.decoder.forward_backward(
            batch.input_ids, batch.cu_seqlens, batch.targets, batch.loss_weight, grad_scale=1 / batch.total_weight
        )
        optimizer.step(max_grad_norm=1.0)
        return loss / batch.total_weight

    return step, {"trained": sum(p.size for p in model.trainable_parameters())}


def decode(task: dict[str, Any]) -> tuple[Callable[[int], int], dict[str, Any]]:
    """Greedy tokens after a prompt of one, so that every step decodes one token: `tokens` steps."""
    model = lc.load_model(task["folder"], quantize="nf4", progress=False)
    model.decoder.precision = "fast"  # as in model.generate

    def run(_index: int) -> int:
        cache = model.decoder.new_cache(task["tokens"])
        logits = model.decoder.decode(cache, [0])
        for _ in range(task["tokens"] - 1):
            logits = model.decoder.decode(cache, [int(logits[0].argmax())])
        return int(logits[0].argmax())

    return run, {}


def prefill(task: dict[str, Any]) -> tuple[Callable[[int], int], dict[str, Any]]:
    """The logits after a prompt of `tokens` tokens."""
    model = lc.load_model(task["folder"], quantize="nf4", progress=False)
    model.decoder.precision = task["precision"]
    prompt = np.arange(task["tokens"], dtype=np.int32)

    def run(_index: int) -> int:
        return int(model.decoder.decode(model.decoder.new_cache(task["tokens"]), prompt)[0].argmax())

    return run, {}


def quantize(task: dict[str, Any]) -> tuple[Callable[[int], None], dict[str, Any]]:
    values = np.random.default_rng(0).standard_normal((task["rows"], task["rows"]), np.float32)

    def run(_index: int) -> None:
        lc.NF4Tensor.quantize(values, double_quant=True)

    return run, {}


def prepare(task: dict[str, Any]) -> tuple[Callable[[int], Any], dict[str, Any]]:
    run, facts = {"train": train, "decode": decode, "prefill": prefill, "quantize": quantize}[task["task"]](task)
    return run, facts | {"versions": f"lora-c {lc.__version__}, {lc.get_isa()}, {lc.get_num_threads()} threads"}


if __name__ == "__main__":
    serve(prepare)
