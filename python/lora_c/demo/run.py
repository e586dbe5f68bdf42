"""The demonstration: exact match before, QLoRA, exact match after, merge, and what it cost."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from ..checkpoints.model_names import BASE_MODEL
from ..configs import GenerationConfig, LoraConfig, TrainConfig
from ..data import Dataset, Sample, samples_from_record
from ..files.atomic import write_text
from ..training.interrupt import Stopped
from .world import task

if TYPE_CHECKING:
    from ..model.model import Model
    from ..training.train_result import TrainResult

ANSWER = GenerationConfig(max_new_tokens=16, precision="exact")  # of the merged model too: the answers must be equal


@dataclass(frozen=True)
class DemoSize:
    """How much the demonstration does."""

    n_train: int
    n_held_out: int
    steps: int


FULL, SHORT = DemoSize(n_train=9_600, n_held_out=200, steps=600), DemoSize(n_train=256, n_held_out=20, steps=8)


def run_demo(output_dir: str | Path, *, short: bool = False, seed: int = 0, to_stderr: bool = False) -> dict[str, Any]:
    """Run it and return what was printed."""
    from ..display.console import TextConsole
    from ..display.plot import plot_losses
    from ..model.opening import load_model
    from ..training.trainer import Trainer

    console, size, folder = TextConsole(stderr=to_stderr), SHORT if short else FULL, Path(output_dir)
    train, held_out = task(seed, size.n_train, size.n_held_out)
    model = load_model(BASE_MODEL, quantize="nf4", double_quant=True, progress=False)
    console.print(f"[bold]base[/]      {model.num_parameters():,} parameters in 4-bit NF4 with double quantization")
    _print_example(console, held_out[0])
    before, _ = exact_match(model, held_out)
    console.print(f"[bold]before[/]    exact match {before:.1%} on {len(held_out)} held-out questions")

    model.add_adapter(LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", seed=seed))
    config = TrainConfig(
        output_dir=str(folder),
        max_steps=size.steps,
        per_device_train_batch_size=16,
        learning_rate=4e-3,
        lr_scheduler_type="cosine",
        warmup_ratio=0.05,
        adam_beta2=0.99,
        eval_steps=max(1, size.steps // 6),
        seed=seed,
    )
    data = dataset(model, train)
    trainer = Trainer(model, data, config, dataset(model, held_out))
    trained = sum(p.size for p in trainer.parameters)
    console.print(f"[bold]training[/]  {trained:,} LoRA parameters (r=16, all linear layers), {trainer.total_steps} steps")
    result = trainer.train()
    if result.interrupted:
        raise Stopped(result.signal or signal.SIGINT)
    model.decoder.precision = "exact"  # so that the merged model can be held against it to the last digits
    after, answers = exact_match(model, held_out)
    merged = model.merge(dtype="float32")
    merged_match, merged_answers = exact_match(merged, held_out)
    difference = logit_difference(model, merged, held_out[:8])

    model.save_adapter(folder)
    plotted = plot_losses(trainer.history, folder / "loss.png", "QLoRA on questions about small stories")
    _print_answers(console, held_out, answers)
    summary = _summary(result, before, after, merged_match, merged_answers == answers, difference)
    _print_summary(console, summary, folder, plotted)
    write_text(folder / "demo.json", json.dumps(summary, indent=2) + "\n")
    return summary


def dataset(model: Model, examples: Sequence[dict[str, Any]]) -> Dataset:
    """Conversations as samples."""
    samples: list[Sample] = []
    for i, example in enumerate(examples):
        samples += samples_from_record(example, model.tokenizer, f"example {i}")
    return Dataset(samples, n_examples=len(examples))


def exact_match(model: Model, examples: Sequence[dict[str, Any]]) -> tuple[float, list[str]]:
    """Share of greedy answers that equal the expected text, and the answers."""
    answers = [model.generate(example["messages"][:1], ANSWER).strip() for example in examples]
    hits = sum(a == e["messages"][1]["content"] for a, e in zip(answers, examples, strict=True))
    return hits / len(examples), answers


def logit_difference(model: Model, merged: Model, examples: Sequence[dict[str, Any]]) -> float:
    """Largest difference of a logit between the adapter model and the merged model, relative to the largest logit."""
    worst = 0.0
    for example in examples:
        ids = np.asarray(model.tokenizer.encode(model.tokenizer.apply_chat_template(example["messages"])), np.int32)
        a, b = model.decoder.logits(ids), merged.decoder.logits(ids)
        worst = max(worst, float(np.abs(a - b).max() / np.abs(a).max()))
    return worst


def _summary(
    result: TrainResult, before: float, after: float, merged: float, same_answers: bool, difference: float
) -> dict[str, Any]:
    return {
        "exact_match_before": before,
        "exact_match_after": after,
        "exact_match_merged": merged,
        "merged_answers_equal": same_answers,
        "merged_logit_difference": difference,
        "steps": result.steps,
        "seconds": round(result.elapsed_seconds, 1),
        "tokens_per_second": round(result.tokens_per_second),
        "peak_memory_mib": round(result.peak_memory_bytes / 2**20, 1),
        "held_out_loss_before": next(r["eval_loss"] for r in result.history if "eval_loss" in r),
        "held_out_loss": result.eval_loss,
        "threads": _core.get_num_threads(),
    }


def shortcoming(summary: dict[str, Any], *, short: bool) -> str | None:
    """What the demonstration failed to show, or None."""
    if not summary["merged_answers_equal"]:
        return "merged model: expected the answers of the adapter model, got others"
    if short:
        before, after = summary["held_out_loss_before"], summary["held_out_loss"]
        return None if after < before else f"held-out loss: expected it to fall below {before:.4f}, got {after:.4f}"
    if summary["exact_match_after"] < 0.9:
        return f"exact match: expected at least 90 % after training, got {summary['exact_match_after']:.1%}"
    return None


def _print_example(console: Any, example: dict[str, Any]) -> None:
    question, answer = (m["content"] for m in example["messages"])
    console.print(f"[bold]task[/]      {question} [green]→ {answer}[/]")


def _print_answers(console: Any, examples: Sequence[dict[str, Any]], answers: Sequence[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("held-out question", "expected", "answer"):
        table.add_column(column)
    for example, answer in list(zip(examples, answers, strict=True))[:5]:
        question, expected = (m["content"] for m in example["messages"])
        style = "green" if answer == expected else "red"
        table.add_row(question.rpartition(". ")[2], expected, Text(answer, style))
    console.print()
    console.print(table)


def _print_summary(console: Any, summary: dict[str, Any], folder: Path, plotted: bool) -> None:
    from rich.markup import escape

    colour = " green" if summary["exact_match_after"] > summary["exact_match_before"] else ""
    place = escape(str(folder))  # a name with brackets is no colour
    equal = "equal answers" if summary["merged_answers_equal"] else "answers differ"
    console.print(
        f"\n[bold]after[/]     exact match [bold{colour}]{summary['exact_match_after']:.1%}[/] "
        f"(before {summary['exact_match_before']:.1%})\n"
        f"[bold]merged[/]    exact match {summary['exact_match_merged']:.1%} in float32, {equal}, "
        f"logits within {summary['merged_logit_difference']:.1e}\n"
        f"[bold]cost[/]      {summary['seconds']} s, {summary['tokens_per_second']:,} tokens/s, "
        f"peak {summary['peak_memory_mib']} MiB, {summary['threads']} threads\n"
        f"[bold]saved[/]     {place}/adapter_model.safetensors" + (f", {place}/loss.png" if plotted else "")
    )
