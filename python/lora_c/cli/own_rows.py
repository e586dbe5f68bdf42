"""Rows of the user's own: a YAML file of names, each with options of `lora-c train` that it changes.

wide:
  r: 32
  learning_rate: 1e-3
  title: a wide adapter
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..comparison.rows import ROWS, Row
from ..configs import ADAPTER_KINDS, TrainConfig
from ..errors import ConfigError, nearest
from .adapter_options import kinds_named
from .settings_file import keys_of, value_of
from .yaml_file import read_settings

# What would end rows at different steps, and what draws one run alone: options that a comparison has not.
OF_ONE_RUN = (
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "early_stopping_patience",
    "early_stopping_threshold", "report_to",
)  # fmt: skip
# Alike in all rows: what is trained on and held out, and how long.
_SHARED = (
    "seed", "output_dir", "max_steps", "num_train_epochs", "val_fraction", "eval_steps", "max_seq_length", *OF_ONE_RUN
)  # fmt: skip


def own_rows(path: str) -> dict[str, Row]:
    """The rows of a file, in its order.

    Raises
    ------
    ConfigError
        With file and line: a name that is taken or no name, an option that is none or that all rows share, a wrong value.
    """
    known, shared = _params()
    found: dict[str, Row] = {}
    for setting in read_settings(Path(path), "row_file"):
        where = f"{path}:{setting.line}"
        name = setting.written
        if not re.fullmatch(r"\w[\w.+-]*", name) or name in ROWS or name.startswith("base"):
            raise ConfigError(f"{where}: expected a name of letters, digits, - and _ that no row has, got {name!r}")
        if not isinstance(setting.value, Mapping):
            raise ConfigError(f"{where}: {name}: expected options below it, got {setting.value!r}")
        found[name] = _row(dict(setting.value), known, shared, f"{where}: {name}")
    return found


def _params() -> tuple[dict[str, click.Parameter], set[str]]:
    """Options of `lora-c train` that a row may change, by every name that they have; and those that rows share."""
    from .train import command

    known = {name for cls in (TrainConfig, *ADAPTER_KINDS.values()) for name in cls.model_fields} | {"peft_type"}
    named = {key: param for param in command.params if param.name in known for key in (str(param.name), *keys_of(param))}
    shared = {key for key, param in named.items() if param.name in _SHARED}
    return {key: param for key, param in named.items() if key not in shared}, shared


def _row(values: dict[str, Any], params: Mapping[str, click.Parameter], shared: set[str], where: str) -> Row:
    from .train import command

    title, settings = str(values.pop("title", "") or "own row"), {}
    ctx = click.Context(command)
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in shared:
            raise ConfigError(f"{where}: expected options that rows may change, got {key!r}, which is alike in all of them")
        if name not in params:
            raise ConfigError(
                f"{where}: expected options of lora-c train that rows may change, got {key!r}{nearest(name, params)}"
            )
        try:
            settings[str(params[name].name)] = value_of(params[name], value, ctx)
        except (ValueError, click.UsageError) as error:
            said = error.message if isinstance(error, click.UsageError) else str(error)
            raise ConfigError(f"{where}: {key}: {said}") from None
    if "peft_type" in settings:
        settings["peft_type"] = kinds_named(settings["peft_type"])
    _check(settings, where)
    return Row(title, {"method": "lora", **settings})


def _check(settings: Mapping[str, Any], where: str) -> None:
    """Whether each configuration takes what a row gives it; what does not go together with the model is seen in the run."""
    for cls in (TrainConfig, *(ADAPTER_KINDS[name] for name in settings.get("peft_type", ["LORA"]))):
        try:
            cls(**{name: value for name, value in settings.items() if name in cls.model_fields and value is not None})
        except ConfigError as error:
            raise ConfigError(f"{where}: {str(error).partition(': ')[2]}") from None
