"""What a run has brought, at its end: aligned lines for people, one object for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..display.measures import measures_of
from ..runs.history import summary_of

if TYPE_CHECKING:
    from ..training.train_result import TrainResult


def show_table(result: TrainResult, saved: str) -> None:
    """Print the lines to standard error; ``saved`` says what was saved, and where."""
    click.echo("\n".join(table_lines(result, saved)), err=True)


def table_lines(result: TrainResult, saved: str) -> list[str]:
    """A line for each: steps, training loss, held-out loss, speed, time, memory, place."""
    steps = "1 step" if result.steps == 1 else f"{result.steps:,} steps"
    rows = [
        ("stopped" if result.interrupted else "done", steps),
        *_loss_rows(result),
        *([("left out", f"{result.skipped:,} steps, which changed nothing")] if result.skipped else []),
        ("speed", f"{result.tokens_per_second:,.0f} tokens/s"),
        ("time", duration(result.elapsed_seconds)),
        ("memory", f"{result.peak_memory_bytes / 2**20:,.0f} MiB at most"),
        ("saved", saved),
    ]
    return [f"{label:<9} {text}" for label, text in rows]


def _loss_rows(result: TrainResult) -> list[tuple[str, str]]:
    if not any("loss" in record or "eval_loss" in record for record in result.history):
        return []
    found, rows = summary_of(result.history), []
    if found["train_loss"] is not None:
        count = found["train_loss_steps"]
        what = f"first step -> mean of the last {count:,} steps" if count > 1 else "first step -> last step"
        rows.append(("loss", f"{found['first_train_loss']:.4f} -> {found['train_loss']:.4f}  training, {what}"))
    if found["eval_loss"] is not None:
        first = f"{found['first_eval_loss']:.4f} -> " if found["evaluations"] > 1 else ""
        what = "first -> last evaluation" if first else "one evaluation"
        rows.append(("held-out", f"{first}{found['eval_loss']:.4f}  {what}"))
    if result.best is not None:
        rows.append(("best", f"{result.best.metric} {result.best.value:.4f} after step {result.best.step:,}"))
    if measures := measures_of(result.evaluation):
        rows.append(("measured", ", ".join(f"{name} {value:.4f}" for name, value in measures.items())))
    return rows


def duration(seconds: float) -> str:
    """Seconds as people say them: 12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def result_values(result: TrainResult, kind: str, output_dir: str) -> dict[str, Any]:
    """The same for programs."""
    names = ("steps", "interrupted", "train_loss", "eval_loss", "tokens_per_second", "elapsed_seconds", "peak_memory_bytes")
    best = None if result.best is None else result.best.as_dict()
    values = {name: getattr(result, name) for name in names}
    measured = {f"eval_{name}": value for name, value in measures_of(result.evaluation).items()}
    return (
        values
        | measured
        | {
            "skipped": result.skipped,
            "best": best,
            "ends_with_best": result.ends_with_best,
            "saved": kind,
            "output_dir": output_dir,
        }
    )
