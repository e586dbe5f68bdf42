"""Learning rates of transformers' schedules, step by step, for tests/python/test_schedules.py.

Usage: .venv-peers/bin/python tests/golden/make_schedules.py          (torch, transformers)
"""

import json
from pathlib import Path

import torch
import transformers
from transformers import get_scheduler

PEAK = 3e-4
CASES = [
    {"kind": "linear"}, {"kind": "linear", "warmup": 0, "total": 7}, {"kind": "cosine"},
    {"kind": "cosine", "options": {"num_cycles": 1.5}}, {"kind": "constant_with_warmup"},
    {"kind": "cosine_with_restarts"}, {"kind": "cosine_with_restarts", "options": {"num_cycles": 3}},
    {"kind": "cosine_with_min_lr", "options": {"min_lr": 2e-5}},
    {"kind": "cosine_with_min_lr", "options": {"min_lr_rate": 0.1}},
    {"kind": "polynomial"}, {"kind": "polynomial", "options": {"power": 2.0, "lr_end": 1e-5}},
    {"kind": "inverse_sqrt"}, {"kind": "inverse_sqrt", "warmup": 0}, {"kind": "inverse_sqrt", "options": {"timescale": 50}},
    {"kind": "warmup_stable_decay", "options": {"num_decay_steps": 60}},
    {"kind": "warmup_stable_decay", "options": {"num_decay_steps": 40, "min_lr_ratio": 0.2, "decay_type": "linear"}},
    {"kind": "warmup_stable_decay", "options": {"num_decay_steps": 40, "num_stable_steps": 100, "decay_type": "1-sqrt"}},
]  # fmt: skip


def rates(kind: str, warmup: int, total: int, options: dict) -> list[float]:
    """The rate of every step of the run, and of some behind it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = get_scheduler(kind, optimizer, warmup, total, scheduler_specific_kwargs=options)
    found = []
    for _ in range(total):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def main() -> None:
    cases = [{"warmup": 20, "total": 200, "options": {}} | case for case in CASES]
    for case in cases:
        case["rates"] = rates(case["kind"], case["warmup"], case["total"], case["options"])
    record = {"transformers": transformers.__version__, "peak": PEAK, "cases": cases}
    Path(__file__).with_name("schedules.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
