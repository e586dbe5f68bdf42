"""Options of the learning-rate schedules (`lr_scheduler_kwargs`), checked. What they do is in `training.schedule`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Option: the least value, whether that itself is excluded, the largest value.
_RANGES: dict[str, tuple[float, bool, float]] = {
    "num_cycles": (0, True, 1e6),
    "power": (0, True, 1e3),
    "lr_end": (0, False, 1e9),
    "min_lr": (0, False, 1e9),
    "min_lr_rate": (0, False, 1),
    "min_lr_ratio": (0, False, 1),
    "timescale": (0, True, 1e12),
    "num_decay_steps": (1, False, 1e12),
    "num_stable_steps": (0, False, 1e12),
}
_DECAY_TYPES = ("linear", "cosine", "1-sqrt")
# Schedule to its options.
SCHEDULE_OPTIONS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": ("num_cycles", "min_lr_rate"),
    "constant": (),
    "constant_with_warmup": (),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "polynomial": ("power", "lr_end"),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": ("num_decay_steps", "num_stable_steps", "min_lr_ratio", "decay_type", "num_cycles"),
}


def check_schedule(kind: str, options: Mapping[str, Any], learning_rate: float) -> None:
    """Refuse options that a schedule has not, or values that it cannot have.

    Raises
    ------
    ValueError
        The message begins with the name of the option.
    """
    known = SCHEDULE_OPTIONS[kind]
    for name, value in options.items():
        if name not in known:
            expected = f"{', '.join(known)} alone" if known else "none"
            raise ValueError(f"lr_scheduler_kwargs: expected {expected} with {kind}, got {name}")
        _check_value(name, value)
    for name in ("lr_end", "min_lr"):
        if options.get(name, 0) > learning_rate:
            raise ValueError(f"{name}: expected at most learning_rate ({learning_rate:g}), got {options[name]:g}")
    if kind == "cosine_with_min_lr" and not {"min_lr", "min_lr_rate"} & options.keys():
        raise ValueError("lr_scheduler_kwargs: expected min_lr or min_lr_rate with cosine_with_min_lr, got neither")
    if "min_lr" in options and "min_lr_rate" in options:
        raise ValueError("min_lr: expected one of min_lr and min_lr_rate, got both")


def _check_value(name: str, value: Any) -> None:
    if name == "decay_type":
        if value not in _DECAY_TYPES:
            raise ValueError(f"decay_type: expected {', '.join(_DECAY_TYPES[:-1])} or {_DECAY_TYPES[-1]}, got {value!r}")
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name}: expected a number, got {value!r}")
    least, excluded, most = _RANGES[name]
    if not (least < value if excluded else least <= value):
        raise ValueError(f"{name}: expected {'more than' if excluded else 'at least'} {least:g}, got {value:g}")
    if value > most:
        raise ValueError(f"{name}: expected at most {most:g}, got {value:g}")
