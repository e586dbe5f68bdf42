"""Models as GGUF files for llama.cpp: F32, F16, BF16 or Q8_0, with the tokenizer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._core import GGMLTensor
from ..checkpoints.safetensors_file import find_non_finite
from ..errors import AdapterError, CheckpointError, ConfigError, shorten
from ..families.architectures import WeightSpec
from ..files.atomic import atomic_file
from ..notices import tell
from ..text.prompts import need_language_model
from ..text.tokenizers_library import library_errors
from ..weights.kinds import dense
from .checkpoint import interleave
from .ends import ends_metadata
from .families import GGUFFamily, family_of_architecture
from .format import DENSE, TYPES_BY_NAME, Value
from .metadata import metadata_of
from .reader import GGUFFile, is_gguf
from .same_model import PlannedFile, check_same_model
from .same_tokenizer import check_same_tokenizer
from .vocabulary import model_name, padded, tell_of_composing, tokenizer_metadata
from .writer import GGUFEntry, text, uint32, write_gguf

if TYPE_CHECKING:
    from ..model.model import Model

ModelType = Literal["F32", "F16", "BF16", "Q8_0"]
# The types by the names that other commands and `merge` have for them.
TYPES: dict[str, ModelType] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}


def write_model(
    path: str | os.PathLike[str], model: Model, type: ModelType = "F16", *, compare_tokenizer: bool = True
) -> None:
    """Write a model as one GGUF file, atomically and one tensor at a time.

    Parameters
    ----------
    type : "F32", "F16", "BF16" or "Q8_0"
        Type of the matrices; vectors stay float32. A matrix whose rows are no multiple of 32 becomes F16 instead of Q8_0.
    compare_tokenizer : bool
        False where `contents_of` has accepted the model's tokenizer already, which takes seconds for large vocabularies.

    Raises
    ------
    AdapterError
        An adapter is in use; merge it first.
    CheckpointError
        The family or the tokenizer has no place in a GGUF file, or a weight is too large for the type.
    """
    if type not in _FILE_TYPES:
        raise ConfigError(f"type: expected one of {', '.join(_FILE_TYPES)}, got {type!r}")
    if model.adapter_config is not None and not model.is_merged:
        raise AdapterError("GGUF: expected a model without an active adapter, got one; use merge(...) first")
    values, entries = contents_of(model, type, compare_tokenizer)
    tell_of_composing(values)
    _tell_of_other_types(model, type)
    with atomic_file(path) as file:
        write_gguf(file.write, values, entries)


def contents_of(model: Model, type: ModelType, compare_tokenizer: bool = True) -> tuple[dict[str, Value], list[GGUFEntry]]:
    """Return the metadata and the tensors of the file, which are loaded when they are written.

    Raises
    ------
    CheckpointError
        The family, something in its configuration, or the tokenizer has no place in a GGUF file.
    """
    need_language_model(model, "GGUF")
    family = family_of_architecture(model.architecture.family.architecture)
    values, tensors = metadata_of(model.config, model.architecture, family)
    values["general.type"] = text("model")
    values["general.name"] = text(model_name(model.source.name, model.tokenizer if model.has_tokenizer else None))
    values["general.file_type"] = uint32(_FILE_TYPES[type])
    if type == "Q8_0":
        values["general.quantization_version"] = uint32(2)
    entries = [*tensors, *(_entry(model, spec, family, type) for spec in model.architecture.weights())]
    check_same_model(values, entries, model.architecture)
    values |= _tokenizer(model)
    if compare_tokenizer and model.has_tokenizer:
        check_same_tokenizer(PlannedFile(values, entries), model.tokenizer)
    return values | ends_metadata(model), entries


def _tokenizer(model: Model) -> dict[str, Value]:
    """As the GGUF file that the model came from has it, else made from the model's tokenizer, else none."""
    rows = int(model.architecture.decoder_kwargs["vocab_size"])
    if is_gguf(model.source):
        file = GGUFFile(model.source)
        try:
            return padded({key: value for key, value in file.values.items() if key.startswith("tokenizer.")}, rows)
        finally:
            file.close()
    if not model.has_tokenizer:
        return {"tokenizer.ggml.model": text("none")}
    with library_errors(CheckpointError, "GGUF: expected a tokenizer that can be written"):
        return tokenizer_metadata(model.tokenizer, rows)


def _stored_type(spec: WeightSpec, type: str) -> str:
    """The type of a weight in a file of a type: vectors are float32, and a block lies within one row."""
    if spec.kind == "vector":
        return "F32"
    return "F16" if spec.shape[-1] % TYPES_BY_NAME[type].block else type


def _tell_of_other_types(model: Model, type: str) -> None:
    matrices = [spec for spec in model.architecture.weights() if spec.kind != "vector"]
    others = [spec for spec in matrices if _stored_type(spec, type) != type]
    if others:
        kinds = shorten(dict.fromkeys(spec.name.rpartition(".")[2] for spec in others))
        rows = ", ".join(map(str, sorted({spec.shape[-1] for spec in others})))
        tell(
            f"{len(others)} of {len(matrices)} matrices ({kinds}) are written as F16: a {type} block is "
            f"{TYPES_BY_NAME[type].block} weights of a row, and their rows have {rows}"
        )


def _entry(model: Model, spec: WeightSpec, family: GGUFFamily, type: str) -> GGUFEntry:
    type = _stored_type(spec, type)
    weight = model.weights[spec.name]
    name = family.to_file(spec.file_name)
    key = family.heads_key(spec.file_name)
    heads = None if key is None else int(model.architecture.decoder_kwargs[key])
    return GGUFEntry(name, type, spec.shape, lambda: _stored(name, weight, type, heads, family.offset(spec.file_name)))


def _stored(name: str, weight: Any, type: str, heads: int | None, offset: float) -> NDArray[Any] | GGMLTensor:
    if isinstance(weight, GGMLTensor) and weight.type == type and type not in DENSE:
        if heads is None:
            return weight
        rows = interleave(weight.blocks.reshape(weight.shape[0], -1), heads)
        return GGMLTensor.from_blocks(rows.reshape(-1), weight.shape, type)
    values = np.asarray(dense(weight))
    values = values if heads is None else interleave(values, heads)
    if offset:
        values = values.astype(np.float32) + np.float32(offset)
    if type not in DENSE:
        return _quantized(name, np.ascontiguousarray(values))
    with np.errstate(over="ignore"):
        stored = values.astype(DENSE[type])
    bad = find_non_finite(stored)
    if bad:
        raise CheckpointError(
            f"{name}: expected values that {type} can hold, got {bad[1]} at index {bad[0]}; use another type"
        )
    return stored


def _quantized(name: str, values: NDArray[Any]) -> GGMLTensor:
    try:
        return GGMLTensor.quantize(values)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None
