"""Options of other libraries' configurations that have one value here: taken with that value, refused with another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError

TASKS = ("CAUSAL_LM", "SEQ_CLS")  # which of them it is for is said by the model
PEFT_CONSTANTS: dict[str, tuple[Any, str]] = {
    "inference_mode": (False, "a new adapter is trained; load_adapter(path, is_trainable=False) loads a frozen one"),
}


def without_constants(kind: str, values: Mapping[str, Any], constants: Mapping[str, tuple[Any, str]]) -> dict[str, Any]:
    """Return the values without the options that have one value here.

    Parameters
    ----------
    kind : str
        The class, for errors.
    constants : mapping
        Option to its value, and why it has no other.

    Raises
    ------
    ConfigError
        One of them has another value.
    """
    rest = dict(values)
    for name, (expected, why) in constants.items():
        value = rest.pop(name, None)
        value = getattr(value, "value", value)  # PEFT's own constants are members of enumerations
        if value != expected and value is not None:
            raise ConfigError(f"{kind}: {name}: expected {expected!r}, got {value!r}; {why}")
    return rest


def without_task(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values without `task_type`, which the model says: CAUSAL_LM or SEQ_CLS.

    Raises
    ------
    ConfigError
        It is another one.
    """
    rest = dict(values)
    task = rest.pop("task_type", None)
    if getattr(task, "value", task) not in (None, *TASKS):
        raise ConfigError(f"{kind}: task_type: expected {' or '.join(TASKS)}, got {task!r}")
    return rest
