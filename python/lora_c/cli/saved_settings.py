"""config.yaml of a run's folder: every setting, so that the same run can start again from any working folder.

Its paths are absolute, but for the output folder, which is the one that it lies in (`.`). Where the folder has been moved
together with what it names, that is found beside it as before.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import BaseModel

from ..configs import ADAPTER_KINDS, AdapterConfig, LoraConfig, StackConfig, TrainConfig
from ..configs.adapters import kind_name, parts_of
from .flags import default_of
from .paths import RUN_MARK, InputPath, OutputPath, is_written_by_a_run, refuse_foreign_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG_NAME = "config.yaml"
_EXPLAINED = (
    f"{RUN_MARK}\n# Relative paths are relative to this file. Go on: lora-c train --config {CONFIG_NAME} --resume\n"
    f"# Start again: lora-c train --config {CONFIG_NAME} --output-dir NEW_FOLDER\n"
)
_OF_THIS_CALL = ("resume", "allow_changes", "as_json")


def save_settings(own: dict[str, Any], config: TrainConfig, lora: AdapterConfig | StackConfig, ignored: set[str]) -> None:
    """Write config.yaml; options without effect in the run, which the next one would refuse, are left out.

    Parameters
    ----------
    own : dict
        The command's options that are in no config class; those that name inputs are made absolute.
    """
    import yaml

    from ..files.atomic import write_text
    from ..files.os_errors import make_folder
    from ..text.chosen_template import read_chosen_template
    from ..text.template_files import TEMPLATE_FILE

    folder = make_folder(config.output_dir)
    refuse_foreign_settings(folder / CONFIG_NAME)
    ctx = click.get_current_context(silent=True)
    inputs = {param.name for param in ctx.command.params if isinstance(param.type, InputPath)} if ctx else set()
    values = {key: value for key, value in own.items() if value is not None and key not in _OF_THIS_CALL}
    values = {key: _map(value, _absolute) if key in inputs else value for key, value in values.items()}
    if values.get("chat_template"):  # a copy, so that the run can start again when the file is gone
        write_text(folder / TEMPLATE_FILE, read_chosen_template(values["chat_template"]))
        values["chat_template"] = TEMPLATE_FILE
    of_adapter = _adapter_values(lora)
    values |= config.model_dump(mode="json") | of_adapter
    values |= {} if isinstance(lora, LoraConfig) else {"peft_type": kind_name(lora)}
    values = {key: value for key, value in values.items() if key not in ignored} | {"output_dir": "."}
    write_text(folder / CONFIG_NAME, _EXPLAINED + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _adapter_values(config: AdapterConfig | StackConfig) -> dict[str, Any]:
    """The options of the adapter; of several only what was given, which each kind that has it takes. Without value are only
    LoRA's: of another kind a key of the same name has another default."""
    values: dict[str, Any] = {}
    for part in parts_of(config):
        names = part.model_fields_set if isinstance(config, StackConfig) else set(type(part).model_fields)
        own = {name: value for name, value in part.model_dump(mode="json").items() if name in names - {"seed", "task_type"}}
        values |= {name: value for name, value in own.items() if value is not None or isinstance(part, LoraConfig)}
    return values


def resolve_paths(file: Path, values: dict[str, Any], params: Mapping[str, click.Parameter]) -> dict[str, Any]:
    """The values of a config.yaml, with the paths that a run wrote into it as they are here and now."""
    if not is_written_by_a_run(file):
        return values
    from ..runs.record import find_moved

    folder = file.parent

    def here(path: str) -> str:
        beside = os.path.normpath(folder / path)
        return beside if not os.path.isabs(path) and os.path.lexists(beside) else find_moved(path, folder)

    kinds = {str(param.name): param.type for param in params.values()}
    inputs = {name: _map(value, here) for name, value in values.items() if isinstance(kinds[name], InputPath)}
    outputs = {name: os.path.normpath(folder / value) for name, value in values.items() if isinstance(kinds[name], OutputPath)}
    return _without_defaults(values | inputs | outputs)


def _without_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """What differs from today's defaults: nobody chose the others, so that no flag contradicts them."""
    given = values.get("peft_type") or "LORA"
    names = [name.strip().upper() for name in (given if isinstance(given, list) else str(given).split(","))]
    classes: list[type[BaseModel]] = [TrainConfig, *(ADAPTER_KINDS[name] for name in names if name in ADAPTER_KINDS)]

    def is_usual(name: str, value: Any) -> bool:
        fields = [cls.model_fields[name] for cls in classes if name in cls.model_fields]
        return bool(fields) and all(
            value == default_of(info) or str(value).lower() == str(default_of(info)).lower() for info in fields
        )

    return {name: value for name, value in values.items() if not is_usual(name, value)}


def _absolute(path: str) -> str:
    """A path or pattern of the file system; a name of something else (a model on the Hub) stays one."""
    return os.path.abspath(path) if os.path.lexists(path) or any(sign in path for sign in "*?[") else path


def _map(value: Any, change: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_map(item, change) for item in value]
    return change(value) if isinstance(value, str) else value
