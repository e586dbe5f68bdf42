"""Which files of a folder an earlier save wrote: the only ones that a new save of the same kind drops.

A model's index lists its weights; what else is there is kept. An adapter lists all its files in the metadata of its weights,
under `lora_c.files`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import AdapterError, CheckpointError, SaveError
from ..files.aside import name_for_people
from ..files.json_files import read_json_object
from ..notices import tell
from ..text.template_files import is_template
from ..text.tokenizer import TOKENIZER_FILES

FILES_KEY = "lora_c.files"
MODEL_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_FILE, MLX_FILE, BASE_FOLDER, STACK_FILE = (
    "adapter_config.json", "adapter_model.safetensors", "adapters.safetensors", "base_model", "adapter_stack.json",
)  # fmt: skip
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_MODEL_FILES = {MODEL_FILE, INDEX_FILE, "config.json", "generation_config.json", *TOKENIZER_FILES}


def is_model_file(name: str) -> bool:
    """Whether a save of a model may write a file of that name."""
    return name in _MODEL_FILES or is_template(name) or _SHARD.fullmatch(name) is not None


def is_adapter_file(name: str) -> bool:
    """Whether a save of an adapter may write a file of that name."""
    own_base = name.startswith(BASE_FOLDER + "/") and is_model_file(name[len(BASE_FOLDER) + 1 :])
    return name in (ADAPTER_CONFIG, ADAPTER_FILE, MLX_FILE) or own_base


def listing(format: str, names: Iterable[str]) -> dict[str, str]:
    """Metadata of weights that lists all files of an adapter, so that the next one can tell them from the user's own."""
    return {"format": format, FILES_KEY: json.dumps(sorted(names))}


def model_files_in(folder: Path) -> set[str]:
    """The weights of the model that was saved in the folder before."""
    found = {MODEL_FILE, INDEX_FILE}
    if os.path.isfile(folder / INDEX_FILE):
        try:
            table = read_json_object(folder / INDEX_FILE).get("weight_map")
        except CheckpointError:
            table = None
        shards = {name for name in table.values() if isinstance(name, str)} if isinstance(table, dict) else set()
        found |= {name for name in shards if name.endswith(".safetensors")}
    return found


def adapter_files_in(folder: Path) -> set[str]:
    """The files of the adapter that was saved in the folder before."""
    return {name for file in (ADAPTER_FILE, MLX_FILE) for name in _listed(folder / file) if is_adapter_file(name)}


def replaced_adapter(path: str | os.PathLike[str], format: str, with_base: bool = False) -> set[str]:
    """The files of the adapter in a folder that a new one of a format takes the place of.

    Raises
    ------
    SaveError
        An adapter of the other format is there, which would lose its adapter_config.json; or, with_base, a model that is not
        an adapter's own base.
    """
    folder = Path(os.path.realpath(path))
    before = adapter_files_in(folder)
    if with_base and os.path.exists(folder / BASE_FOLDER / "config.json") and f"{BASE_FOLDER}/config.json" not in before:
        raise SaveError(
            f"{name_for_people(folder / BASE_FOLDER)}: expected no folder of that name, got a model that no adapter wrote; "
            "choose another folder"
        )
    other, name = (MLX_FILE, "mlx-lm") if format == "peft" else (ADAPTER_FILE, "PEFT")
    own = ADAPTER_FILE if format == "peft" else MLX_FILE
    if os.path.exists(folder / ADAPTER_CONFIG) and os.path.exists(folder / other) and not os.path.exists(folder / own):
        raise SaveError(
            f"{name_for_people(folder)}: expected a folder without an adapter of {name}, got one with {other}; choose another "
            "folder"
        )
    return before


def tell_adapter_beside(folder: Path) -> None:
    """Say that a model's folder holds an adapter, too: transformers would load it with the model."""
    if os.path.isfile(folder / ADAPTER_CONFIG) and any(os.path.isfile(folder / name) for name in (ADAPTER_FILE, MLX_FILE)):
        where = name_for_people(folder)
        tell(f"{where}: an adapter lies beside the model's weights, and counts where it is asked for: --adapter {where}")


def has_own_base(folder: Path, named: object) -> bool:
    """Whether the subfolder `base_model` was written with the adapter; named: the base in adapter_config.json.

    An adapter whose files are not listed was written by an older version or another program.

    Raises
    ------
    AdapterError
        It was, and is gone: with another base the adapter's numbers are those of no model.
    """
    is_there = os.path.isfile(folder / BASE_FOLDER / "config.json")
    listed = _listed(folder / ADAPTER_FILE)
    if not listed:
        return is_there and isinstance(named, str) and Path(named).name == BASE_FOLDER
    was_written = f"{BASE_FOLDER}/config.json" in listed
    if was_written and not is_there:
        raise AdapterError(
            f"{name_for_people(folder / BASE_FOLDER)}: expected the base that the adapter was trained on and saved with (its "
            "weights differ from the model's), got nothing there; copy the whole folder of the adapter"
        )
    return was_written


def _listed(file: Path) -> list[str]:
    from .safetensors_file import SafetensorsFile  # with NumPy, which the names above do without

    if not os.path.isfile(file):
        return []
    try:
        weights = SafetensorsFile(file)
        weights.close()
        names = json.loads(weights.metadata.get(FILES_KEY, "[]"))
    except (ValueError, RecursionError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
