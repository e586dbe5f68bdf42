"""From a model in memory to a Hugging Face folder, one tensor at a time, atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._core import NF4Tensor
from ..checkpoints.own_files import copy_own_file
from ..checkpoints.prequantized import OF_BITSANDBYTES, nf4_entries, quant_type_of, quantization_config
from ..checkpoints.safetensors_file import find_non_finite
from ..checkpoints.safetensors_writer import TensorEntry, write_model_files
from ..checkpoints.written import ADAPTER_CONFIG, model_files_in
from ..configs import FOUR_BIT
from ..errors import AdapterError, CheckpointError, ConfigError
from ..families.architectures import WeightSpec, architecture_of
from ..families.multimodal import config_of_text_model
from ..files.atomic import atomic_folder
from ..files.paths import expand
from ..generation.generation_file import GENERATION_FILE
from ..notices import tell
from ..text.ends import with_ends
from ..text.template_files import TEMPLATE_FILE, replace_templates, template_files
from ..text.tokenizer import TOKENIZER_FILES
from ..weights.kinds import dense, format_of
from .loading import DENSE_DTYPES, in_order

if TYPE_CHECKING:
    from .model import Model

_LOADED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", TEMPLATE_FILE,
    "chat_template.json",
)  # fmt: skip
_DTYPES = DENSE_DTYPES | {"float16": np.dtype(np.float16)}


def save(
    model: Model,
    path: str | os.PathLike[str],
    dtype: Literal["float32", "bfloat16", "float16", "nf4", "fp4", "fp4_e2m1", "int4"] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a Hugging Face folder, atomically.

    Parameters
    ----------
    path : path
        The folder.
    dtype : optional
        Type of the matrices; by default as they are (4-bit types in bitsandbytes' layout, byte for byte as it was read;
        blocks of GGUF files, for which a folder has no place, as the values that they stand for).
    max_shard_bytes : int
        Largest file of weights; several get an index.

    Raises
    ------
    AdapterError
        An adapter is active: a folder of weights cannot hold it.
    """
    path = expand(path)
    if model.adapter_config is not None and not model.is_merged:
        raise AdapterError(
            "save: expected a model without an active adapter, got one; use merge(...).save(path) or save_adapter(path)"
        )
    if dtype is not None and dtype not in (*_DTYPES, *FOUR_BIT):
        raise ConfigError(f"dtype: expected one of {', '.join(map(repr, (*_DTYPES, *FOUR_BIT)))}, got {dtype!r}")
    _tell_of_blocks(path, model, dtype)
    specs = architecture_of(config_of_text_model(model.config)).weights()
    entries = [entry for spec in specs for entry in _entries(model, spec, dtype)]
    names = {entry.name for entry in entries}
    linear = {spec.module: quant_type_of(spec.file_name, names) for spec in specs if spec.kind in ("projection", "head")}
    _tell_of_own_types(path, linear)
    before = model_files_in(Path(os.path.realpath(path)))
    with atomic_folder(path, before.__contains__) as folder:
        text = json.dumps(_saved_config(model, dtype, linear), indent=2, ensure_ascii=False) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        _write_generation_config(model, folder)
        _copy_tokenizer(model, folder)
        write_model_files(folder, entries, max_shard_bytes)
        _tell_of_strangers(Path(os.path.realpath(path)), folder)


def _tell_of_strangers(target: Path, folder: Path) -> None:
    """Files that this save neither writes nor drops, and that whoever loads the folder takes for the model's."""
    templates = [path.relative_to(target).as_posix() for path in template_files(target)]
    names = dict.fromkeys((*TOKENIZER_FILES, *templates, GENERATION_FILE, ADAPTER_CONFIG))
    left = [name for name in names if (target / name).exists() and not (folder / name).exists()]
    if left:
        tell(f"{target}: {', '.join(left)} was there before and is kept: remove it if it does not belong to this model")


def _tell_of_blocks(path: Path, model: Model, dtype: str | None) -> None:
    """A base that was quantized to blocks here does not come back as it is from a folder of its decoded values."""
    made_here = model.quantization.quant_type == "q8_0"
    if made_here and dtype is None and any(format_of(weight) == "Q8_0" for weight in model.weights.values()):
        tell(
            f"{path}: a folder has no place for blocks of Q8_0: the values that they stand for are written, in float32; "
            "gguf.write_model(path, model, 'Q8_0') and `lora-c export --to gguf --dtype q8_0` keep the blocks"
        )


def _tell_of_own_types(path: Path, linear: dict[str, str | None]) -> None:
    own = sorted({kind for kind in linear.values() if kind} - set(OF_BITSANDBYTES))
    if own:
        tell(
            f"{path}: {' and '.join(own)}: bitsandbytes and transformers read nf4 and fp4 only; lora-c alone reads this folder"
        )


def _entries(model: Model, spec: WeightSpec, dtype: str | None) -> list[TensorEntry]:
    weight, stored = model.weights[spec.name], model.stored_dtypes[spec.name]
    record = model.quant_records.get(spec.name)
    if dtype in FOUR_BIT and spec.kind == "projection" and format_of(weight) != dtype.upper():
        weight, record = model.quantization.in_4bit(dtype).quantize(dense(weight)), None
    if isinstance(weight, NF4Tensor) and dtype in (None, weight.quant_type):
        return nf4_entries(spec.file_name, weight, stored.name, record)
    target = _DTYPES.get(dtype or "", stored)
    return [TensorEntry(spec.file_name, target, spec.file_shape, lambda: in_order(spec, _stored(spec, weight, target)))]


def _stored(spec: WeightSpec, weight: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # said below, with the name
        array = np.asarray(dense(weight), dtype)
    bad = find_non_finite(array) if dtype == np.float16 else None
    if bad:
        raise CheckpointError(
            f"{spec.file_name}: expected values that float16 can hold, got {bad[1]} at index {bad[0]}; use bfloat16 or float32"
        )
    return array


def _saved_config(model: Model, dtype: str | None, linear: dict[str, str | None]) -> dict[str, Any]:
    """linear: the modules of projections and of an untied head, and the 4-bit types that they are saved in."""
    config = config_of_text_model(model.config)
    if model.labels is None:  # the folder of a classifier keeps what it said of the head that it no longer has
        config["tie_word_embeddings"] = model.architecture.tied
    dense = dtype if dtype in _DTYPES else model.stored_dtypes["embed_tokens"].name
    config["dtype" if "dtype" in config else "torch_dtype"] = dense
    kinds = [kind for kind in linear.values() if kind]
    as_read = dtype is None and len(kinds) <= len(model.quant_records)  # what it said still holds
    if not kinds:
        config.pop("quantization_config", None)
    elif not as_read or "quantization_config" not in config:
        left = [module for module, kind in linear.items() if not kind and module != "lm_head"]
        nested, head = model.quantization.double_quant, bool(linear.get("lm_head"))
        config["quantization_config"] = quantization_config(kinds[0], nested, dense, left, head)
    return with_ends(config, model.eos_token_ids)


def _write_generation_config(model: Model, folder: Path) -> None:
    copied = copy_own_file(model.source, GENERATION_FILE, folder)
    before = model.generation_options if copied else {}
    options = with_ends(before, model.eos_token_ids)
    if options != before:
        text = json.dumps(options, indent=2, ensure_ascii=False) + "\n"
        (folder / GENERATION_FILE).write_text(text, encoding="utf-8")


def copy_tokenizer(model: Model, folder: Path) -> None:
    """Put the tokenizer and the chat templates beside an adapter; each file is whole or as it was before."""
    with TemporaryDirectory(prefix=".tokenizer-", dir=folder) as aside:
        _copy_tokenizer(model, Path(aside))
        for file in sorted(path for path in Path(aside).rglob("*") if path.is_file()):
            target = folder / file.relative_to(aside)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)


def _copy_tokenizer(model: Model, folder: Path) -> None:
    templates = [path.relative_to(model.source).as_posix() for path in template_files(model.source)]
    copied = {name: copy_own_file(model.source, name, folder) for name in dict.fromkeys((*TOKENIZER_FILES, *templates))}
    lost = any((model.source / name).is_file() and not copied[name] for name in (*_LOADED, *templates))
    if model.has_tokenizer and (lost or not copied["tokenizer.json"]):
        model.tokenizer.save(folder)
    elif model.has_tokenizer:
        replace_templates(folder, model.tokenizer.templates)
