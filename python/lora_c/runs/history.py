"""What a run has logged, read back: metrics.jsonl, also one whose end or middle is damaged."""

from __future__ import annotations

import json
import math
import os
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files.regular_file import open_regular
from ..notices import tell

METRICS = "metrics.jsonl"


def read_metrics(run: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Records of a run in their order.

    Parameters
    ----------
    run : path
        The output folder of ``lora-c train``, or a metrics.jsonl itself. Lines that are no records are left out, and told.

    Raises
    ------
    DataError
        There is no such file, or no record in it.
    """
    path = Path(run) / METRICS if os.path.isdir(run) else Path(run)
    if not os.path.lexists(path):
        raise DataError(f"{path}: expected the {METRICS} of a training run, got nothing there; give the folder of a run")
    with open_regular(path, DataError) as file:
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    found = [_record(line) for line in lines]
    records = [record for record in found if record is not None]
    if not records:
        raise DataError(f"{path}: expected lines with step and loss or eval_loss, got none; is it the {METRICS} of a run?")
    bad = [number for number, record in enumerate(found, 1) if record is None and lines[number - 1].strip()]
    if bad:
        tell(f"{path}: {len(bad)} of {len(lines)} lines left out, which are damaged (the first is line {bad[0]})")
    return records


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    return record if {"loss", "eval_loss", "skipped"} & record.keys() else None


def was_evaluated(history: list[dict[str, Any]], step: int) -> bool:
    """Whether a history has the evaluation after a step, which is the last one or close to it."""
    return any("eval_loss" in record for record in takewhile(lambda record: record["step"] >= step, reversed(history)))


def summary_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """First and last losses of a run; the last training loss is the mean of the last tenth of the steps."""
    losses, held_out = (_numbers(records, key) for key in ("loss", "eval_loss"))
    tail = losses[-max(1, len(losses) // 10) :]
    return {
        "steps": max((record["step"] for record in records), default=0),
        "first_train_loss": losses[0] if losses else None,
        "train_loss": sum(tail) / len(tail) if tail else None,
        "train_loss_steps": len(tail),
        "first_eval_loss": held_out[0] if held_out else None,
        "eval_loss": held_out[-1] if held_out else None,
        "evaluations": len(held_out),
    }


def _numbers(records: list[dict[str, Any]], key: str) -> list[float]:
    values = [record[key] for record in records if isinstance(record.get(key), (int, float))]
    return [float(value) for value in values if math.isfinite(value)]
