"""Names and options of the optimizers (`optim`, `optim_args`), checked. Who makes them is `training.optimizers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

OptimName = Literal[
    "adamw_torch", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "sgd", "lion", "lion_32bit",
    "adafactor", "muon", "adamw_torch_fused", "paged_adamw",
]  # fmt: skip
OTHER_OPTIM_NAMES = {
    "adamw_bnb_8bit": "adamw_8bit", "lion_32bit": "lion", "adamw_torch_fused": "adamw_torch",
    "paged_adamw": "paged_adamw_32bit",
}  # fmt: skip
# What a checkpoint of each holds: those with the same go on from each other's, with the same bits.
OPTIM_STATES = {
    "adamw_torch": "adamw", "paged_adamw_32bit": "adamw", "adamw_8bit": "adamw_8bit", "paged_adamw_8bit": "adamw_8bit",
    "sgd": "sgd", "lion": "lion", "adafactor": "adafactor", "muon": "muon",
}  # fmt: skip
# Option: the least value, whether that itself is excluded, the largest value, whether that is excluded.
_RANGES: dict[str, tuple[float, bool, float, bool]] = {
    "min_8bit_size": (0, False, 1e15, False),
    "momentum": (0, False, 1, True),
    "dampening": (0, False, 1, False),
    "beta1": (0, False, 1, True),
    "beta2": (0, False, 1, True),
    "clip_threshold": (0, True, 1e9, False),
    "decay_rate": (-1e3, False, 0, True),
    "ns_steps": (0, False, 99, False),
}
_SWITCHES = frozenset({"nesterov", "scale_parameter", "relative_step", "warmup_init"})
_WHOLE = frozenset({"min_8bit_size", "ns_steps"})
_RATES = ("original", "match_rms_adamw")
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
# Optimizer to its options.
OPTIM_OPTIONS: dict[str, tuple[str, ...]] = {
    "adamw_torch": (),
    "adamw_8bit": ("min_8bit_size",),
    "paged_adamw_32bit": (),
    "paged_adamw_8bit": ("min_8bit_size",),
    "sgd": ("momentum", "dampening", "nesterov"),
    "lion": ("beta1", "beta2"),
    "adafactor": ("scale_parameter", "relative_step", "warmup_init", "clip_threshold", "decay_rate", "beta1"),
    "muon": ("momentum", "nesterov", "ns_steps", "adjust_lr_fn"),
}


def split_optim_args(given: Any) -> Any:
    """``"momentum=0.9,nesterov=true"``, as transformers takes it, as a mapping; anything else stays.

    Raises
    ------
    ValueError
        A part is no name with a value.
    """
    if not isinstance(given, str):
        return given
    found: dict[str, str] = {}
    for part in filter(None, given.replace(" ", "").split(",")):
        name, equals, value = part.partition("=")
        if not (name and equals and value) or name in found:
            raise ValueError(f"optim_args: expected name=value,name=value with each name once, got {part!r}")
        found[name] = value
    return found


def check_optim(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an optimizer with the types that they have.

    Raises
    ------
    ValueError
        It has no such option, or an option cannot have such a value; the message begins with the name.
    """
    known = OPTIM_OPTIONS[kind]
    for name in options:
        if name not in known:
            expected = f"{', '.join(known)} alone" if known else "none"
            raise ValueError(f"optim_args: expected {expected} with {kind}, got {name}")
    values = {name: _typed(name, value) for name, value in options.items()}
    if values.get("nesterov") and kind == "sgd" and not (values.get("momentum", 0) > 0 and values.get("dampening", 0) == 0):
        raise ValueError("nesterov: expected momentum above 0 beside it and no dampening, got others")
    if values.get("warmup_init") and not values.get("relative_step"):
        raise ValueError("warmup_init: expected relative_step beside it, got none")
    return values


def _typed(name: str, value: Any) -> Any:
    if name == "adjust_lr_fn":
        if value not in _RATES:
            raise ValueError(f"adjust_lr_fn: expected {' or '.join(_RATES)}, got {value!r}")
        return value
    if name in _SWITCHES:
        text = str(value).lower().removesuffix(".0")
        if text not in _TRUE + _FALSE:
            raise ValueError(f"{name}: expected true or false, got {value!r}")
        return text in _TRUE
    return _number(name, value)


def _number(name: str, value: Any) -> float | int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected a number, got {value!r}") from None
    least, above, most, below = _RANGES[name]
    if not (least < number if above else least <= number):
        raise ValueError(f"{name}: expected {'more than' if above else 'at least'} {least:g}, got {number:g}")
    if not (number < most if below else number <= most):
        raise ValueError(f"{name}: expected {'less than' if below else 'at most'} {most:g}, got {number:g}")
    if name in _WHOLE and number != int(number):
        raise ValueError(f"{name}: expected a whole number, got {number:g}")
    return int(number) if name in _WHOLE else number
