"""A chat template in the place of all that a model has: the user's own (``--chat-template FILE``), or its adapter's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from ..files.json_files import read_json_object
from ..files.regular_file import open_regular
from ..notices import tell
from .chat_template import check_template
from .ends import find_ends
from .template_files import DEFAULT, read_templates
from .template_limits import MAX_SOURCE

if TYPE_CHECKING:
    from ..model.model import Model
    from .tokenizer import Tokenizer


def read_chosen_template(path: str | os.PathLike[str]) -> str:
    """Return the template of a Jinja file.

    Raises
    ------
    DataError
        It cannot be read, is empty, or is no template.
    """
    file = Path(path).expanduser()
    with open_regular(file, DataError) as stream:
        data = stream.read(4 * MAX_SOURCE + 1)
    if len(data) > 4 * MAX_SOURCE:
        raise DataError(f"{file}: expected a chat template of at most {MAX_SOURCE:,} characters, got a larger file")
    try:
        source = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: expected UTF-8 text, got byte 0x{data[error.start]:02x}") from None
    if not source.strip():
        raise DataError(f"{file}: expected a chat template (Jinja), got an empty file")
    check_template(source, str(file))
    return source


def use_template(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> None:
    """Let a tokenizer use the template of a file for every conversation; it is saved with it."""
    tokenizer.templates = {DEFAULT: read_chosen_template(path)}


def use_chat_template(model: Model, path: str | os.PathLike[str]) -> None:
    """As `use_template`, for a model, whose answers end as that template ends them."""
    use_template(model.tokenizer, path)
    _find_ends(model, path)


def use_template_of_adapter(model: Model, adapter: str | os.PathLike[str]) -> None:
    """Let a model use the chat template that its adapter was trained with, where one lies beside it and is another."""
    folder = Path(adapter)
    if not model.has_tokenizer or not folder.is_dir():
        return
    file = folder / "tokenizer_config.json"
    templates = read_templates(folder, read_json_object(file) if file.is_file() else {})
    if templates and templates != model.tokenizer.templates:
        model.tokenizer.templates = templates
        _find_ends(model, adapter)
        tell(f"{folder}: its chat template, with which the adapter was trained, takes the place of the model's")


def _find_ends(model: Model, where: str | os.PathLike[str]) -> None:
    ends = find_ends(model.config, model.generation_options, model.tokenizer)
    model.eos_token_ids = ends.ids
    if (line := ends.disagreement(model.tokenizer)) is not None:
        tell(f"{os.fspath(where)}: {line}")
