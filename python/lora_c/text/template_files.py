"""The chat templates of a model folder: a folder can hold several, in several files.

As in transformers 5: chat_template.jinja and the files in additional_chat_templates/ replace all that tokenizer_config.json
says. chat_template.json belongs to a processor of texts and images; it counts where the tokenizer has no template of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files.json_files import MOST_BYTES, read_json_object
from ..files.os_errors import reason
from ..files.regular_file import read_regular

TEMPLATE_FILE, TEMPLATE_FOLDER = "chat_template.jinja", "additional_chat_templates"
DEFAULT, TOOL_USE = "default", "tool_use"  # names that have a meaning


def read_templates(folder: Path, options: Mapping[str, Any]) -> dict[str, str]:
    """Return the templates by name; a single one is named "default".

    Parameters
    ----------
    options : dict
        tokenizer_config.json.

    Raises
    ------
    CheckpointError
        A template cannot be read, or is no text.
    """
    names = {TEMPLATE_FILE: DEFAULT}
    found = {names.get(path.name, path.name.removesuffix(".jinja")): _text(path) for path in template_files(folder)}
    if found:
        return found
    value = options.get("chat_template")
    if value is None and (folder / "chat_template.json").exists():
        value = read_json_object(folder / "chat_template.json").get("chat_template")
    return _by_name(value, f"{folder}: chat_template")


def template_files(folder: Path) -> list[Path]:
    """The .jinja files of a folder, the default one first."""
    default = folder / TEMPLATE_FILE
    others = sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))
    return [path for path in (default, *others) if path.exists()]


def is_template(name: str) -> bool:
    """Whether a file of that name, seen from the model's folder, is a template."""
    folder, _, file = name.rpartition("/")
    return name == TEMPLATE_FILE or (folder == TEMPLATE_FOLDER and file.endswith(".jinja"))


def write_templates(folder: Path, templates: Mapping[str, str]) -> None:
    """Write the templates so that `read_templates` gives them back."""
    for name, text in templates.items():
        if name != DEFAULT and (name != Path(name).name or name.startswith(".")):
            raise CheckpointError(f"chat template: expected a name that a file can have, got {name!r}")
        path = folder / TEMPLATE_FILE if name == DEFAULT else folder / TEMPLATE_FOLDER / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")


def replace_templates(folder: Path, templates: Mapping[str, str]) -> None:
    """Let a folder that was copied hold these templates, where they are others than its own."""
    file = folder / "tokenizer_config.json"
    options = read_json_object(file) if file.is_file() else {}
    if read_templates(folder, options) == dict(templates):
        return
    for path in template_files(folder):
        path.unlink()
    if "chat_template" in options:
        del options["chat_template"]
        file.write_text(json.dumps(options, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "chat_template.json").unlink(missing_ok=True)
    write_templates(folder, templates)


def _by_name(value: Any, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list):
        if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in value):
            raise CheckpointError(f"{where}: expected a list of templates with 'name' and 'template', got another")
        value = {entry["name"]: entry.get("template") for entry in value}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(f"{where}: expected a text or texts by name, got {type(value).__name__}")
    return value


def _text(path: Path) -> str:
    try:
        return read_regular(path, CheckpointError, MOST_BYTES).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: expected UTF-8 text, got: {reason(error)}") from None
