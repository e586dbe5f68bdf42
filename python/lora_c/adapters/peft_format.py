"""Adapters as PEFT stores them: `adapter_config.json` and `adapter_model.safetensors`. Pickles are never opened."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..checkpoints.safetensors_file import SafetensorsFile
from ..checkpoints.safetensors_writer import TensorEntry, write_safetensors
from ..checkpoints.written import ADAPTER_CONFIG, ADAPTER_FILE, BASE_FOLDER, listing, replaced_adapter
from ..configs import LoraConfig
from ..errors import AdapterError, CheckpointError
from ..families.architectures import Architecture, WeightSpec
from ..families.multimodal import is_left_out, spellings
from ..files.aside import name_for_people
from ..files.atomic import atomic_folder
from ..files.json_files import read_json_object
from .config import file_config, parse_adapter_config
from .data import F32, PREFIX, AdapterArrays, MatrixArrays, TokenRows, all_specs, specs_by_name
from .floats import read_floats
from .peft_tensors import read_tensors
from .stack_folder import files_of_stack
from .targets import AdapterTarget, find_saved, find_targets, find_token_ids
from .virtual_tokens_config import with_sizes

_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
)
_TOKENS = ".token_adapter.trainable_tokens_delta"
_BASE_LAYER = ".base_layer."


@dataclass(frozen=True)
class Place:
    """Where a tensor of the file belongs: a target's part ("lora_A", …), a whole tensor ("saved") or rows ("tokens")."""

    kind: str
    name: str
    shape: tuple[int, ...]
    transposed: bool = False


def read_peft(folder: Path, architecture: Architecture) -> AdapterArrays:
    """Read an adapter folder and check it against a base model.

    Raises
    ------
    AdapterError
        The folder is not an adapter, needs what is not supported, or belongs to another base model.
    """
    weights = weights_file(folder)
    try:
        values = read_json_object(folder / ADAPTER_CONFIG)
        config = parse_adapter_config(values, str(folder / ADAPTER_CONFIG))
        file = SafetensorsFile(weights)
    except CheckpointError as error:
        raise AdapterError(str(error)) from None
    try:
        if not isinstance(config, LoraConfig):
            return _read_other_kind(file, config, architecture)
        arrays = _read_arrays(file, config, architecture)
        specs = specs_by_name(architecture)
        shared = next((name for name in arrays.matrices if specs[name].kind != "projection"), None)
        if values.get("ensure_weight_tying") and architecture.tied and shared is not None:
            raise AdapterError(
                f"{folder / ADAPTER_CONFIG}: ensure_weight_tying: expected it unset with an adapter on {shared}, got True; "
                "this is not supported, merge it with PEFT (merge_and_unload) and load the merged model"
            )
        return arrays
    finally:
        file.close()


def weights_file(folder: Path) -> Path:
    """The file of an adapter's tensors.

    Raises
    ------
    AdapterError
        There is none, or a pickle instead.
    """
    weights = folder / ADAPTER_FILE
    if not weights.exists():
        if (folder / "adapter_model.bin").exists():
            raise AdapterError(
                f"{folder / 'adapter_model.bin'}: expected {ADAPTER_FILE}, got a pickle, which can run code when opened; "
                "convert it with PEFT: PeftModel.from_pretrained(base, FOLDER).save_pretrained(NEW_FOLDER)"
            )
        raise AdapterError(f"{weights}: expected this file, got nothing there; is this an adapter folder?")
    return weights


def _read_arrays(file: SafetensorsFile, config: LoraConfig, architecture: Architecture) -> AdapterArrays:
    targets = find_targets(config, architecture, strict=False)
    saved = find_saved(config, architecture, targets)
    token_ids = find_token_ids(config, architecture)
    places = _places(config, targets, saved, token_ids, architecture)
    found: dict[tuple[str, str], F32] = {}
    bases = _saved_bases(file, architecture, {t.spec.name for t in targets})
    for key in file.tensors:
        if key in bases.values():
            continue
        if is_left_out(key.removeprefix(PREFIX), architecture.family):
            _check_untrained(file, key)
            continue
        place = _place_of(key, places, file, architecture)
        found[place.kind, place.name] = _read_tensor(file, key, place)
    for key, place in places.items():
        if (place.kind, place.name) not in found:
            raise AdapterError(
                f"{file.path}: expected tensor {PREFIX + key!r} (named in {ADAPTER_CONFIG}), got a file without it"
            )
    matrices = {
        t.spec.name: MatrixArrays(
            found["lora_A", t.spec.name],
            found["lora_B", t.spec.name],
            t.scale,
            found.get(("lora_magnitude_vector", t.spec.name)),
        )
        for t in targets
    }
    wholes = {name: array for (kind, name), array in found.items() if kind == "saved"}
    rows = TokenRows(token_ids, found["tokens", "embed_tokens"]) if token_ids else None
    # Copies: the file is closed before they are asked for.
    own = {name: read_floats(file, key) for name, key in bases.items()}
    return AdapterArrays(config, matrices, wholes, rows, {name: lambda w=w: w for name, w in own.items()})  # type: ignore[misc]


def _read_other_kind(file: SafetensorsFile, config: Any, architecture: Architecture) -> AdapterArrays:
    """Of another kind than LoRA: its tensors, and modules that are saved whole."""
    saved = {PREFIX + spec.file_name: spec for spec in find_saved(config, architecture, [])}
    wholes = {}
    for key, spec in saved.items():
        if key not in file.tensors:
            raise AdapterError(f"{file.path}: expected tensor {key!r} (named in {ADAPTER_CONFIG}), got a file without it")
        wholes[spec.name] = _read_tensor(file, key, Place("saved", spec.name, spec.file_shape, spec.transposed))
    return AdapterArrays(config, {}, wholes, tensors=read_tensors(file, config, architecture, set(saved)))


def _saved_bases(file: SafetensorsFile, architecture: Architecture, adapted: set[str]) -> dict[str, str]:
    """Decoder name to key of an embedding or a head without its adapter: PEFT writes it along where it is adapted."""
    found = {}
    for spec in all_specs(architecture):
        key = f"{PREFIX}{spec.module}{_BASE_LAYER}weight"
        if spec.kind in ("embedding", "head") and spec.name in adapted and key in file.tensors:
            if file.tensors[key].shape != spec.shape:
                raise AdapterError(f"{file.path}: {key}: expected shape {spec.shape}, got {file.tensors[key].shape}")
            found[spec.name] = key
    return found


def _places(
    config: LoraConfig, targets: Iterable[AdapterTarget], saved: Iterable[WeightSpec], token_ids: list[int] | None,
    architecture: Architecture,
) -> dict[str, Place]:  # fmt: skip
    """Every key that the configuration promises, without the prefix, and where it belongs."""
    places = {}
    for target in targets:
        (out, inner), name = target.spec.shape, target.spec.name
        if target.spec.kind == "embedding":  # PEFT's update of an embedding is the transpose of s B A
            places[target.spec.module + ".lora_embedding_A"] = Place("lora_B", name, (target.r, out), transposed=True)
            places[target.spec.module + ".lora_embedding_B"] = Place("lora_A", name, (inner, target.r), transposed=True)
            continue
        places[target.spec.module + ".lora_A.weight"] = Place("lora_A", name, (target.r, inner))
        places[target.spec.module + ".lora_B.weight"] = Place("lora_B", name, (out, target.r))
        if config.use_dora:
            places[target.spec.module + ".lora_magnitude_vector"] = Place("lora_magnitude_vector", name, (out,))
    adapted = {target.spec.module for target in targets}
    for spec in saved:
        places[_saved_key(spec, adapted)] = Place("saved", spec.name, spec.file_shape, spec.transposed)
    if token_ids:
        embedding = specs_by_name(architecture)["embed_tokens"]
        places[embedding.module + _TOKENS] = Place("tokens", "embed_tokens", (len(token_ids), embedding.shape[1]))
    return places


def _saved_key(spec: WeightSpec, adapted: set[str]) -> str:
    """PEFT wraps an adapted module, so that its own bias is found one level deeper."""
    module, _, part = spec.file_name.rpartition(".")
    return f"{module}{_BASE_LAYER}{part}" if module in adapted else spec.file_name


def _place_of(key: str, places: Mapping[str, Place], file: SafetensorsFile, architecture: Architecture) -> Place:
    plain = key.removeprefix(PREFIX)
    match = _KEY.fullmatch(key)
    shown = key[:120]
    if match is not None:
        suffix = "" if match["part"] == "lora_magnitude_vector" else ".weight"
        plain = f"{match['module']}.{match['part']}{suffix}"
    plain = spellings(plain, architecture.family)[0]
    for candidate in (plain, plain.replace(_BASE_LAYER, "."), _with_base_layer(plain)):
        if candidate in places:
            return places[candidate]
    module = spellings(match["module"], architecture.family)[0] if match is not None else None
    if module is None:
        raise AdapterError(
            f"{file.path}: {shown}: expected only what {ADAPTER_CONFIG} names, got this tensor; it is not supported"
        )
    if module not in {spec.module for spec in all_specs(architecture)}:
        raise AdapterError(
            f"{file.path}: {shown}: expected a module of this model, got another; it is an adapter for another base model"
        )
    raise AdapterError(
        f"{file.path}: {key}: expected a tensor that {ADAPTER_CONFIG} asks for, got one more; see its "
        "target_modules and use_dora"
    )


def _check_untrained(file: SafetensorsFile, key: str) -> None:
    """PEFT also adapts modules of the part for images that are called like those of the text model: with texts alone their B
    stays zero, and they change nothing."""
    match = _KEY.fullmatch(key)
    if match is None or (match["part"] == "lora_B" and read_floats(file, key).any()):
        raise AdapterError(
            f"{file.path}: {key[:120]}: expected an adapter of the text model only, got one that also changes the part for "
            "images, which is left out here; merge it with PEFT (merge_and_unload) and load the merged model"
        )


def _with_base_layer(key: str) -> str:
    module, _, part = key.rpartition(".")
    return f"{module}{_BASE_LAYER}{part}"


def _read_tensor(file: SafetensorsFile, key: str, place: Place) -> F32:
    info = file.tensors[key]
    if info.shape != place.shape:
        rank = {"lora_A": (info.shape[1:], place.shape[1:]), "lora_B": (info.shape[:1], place.shape[:1])}.get(place.kind)
        only_rank = rank is not None and len(info.shape) == 2 and rank[0] == rank[1]
        reason = f"{ADAPTER_CONFIG} gives another rank" if only_rank else "this is an adapter for another base model"
        raise AdapterError(f"{file.path}: {key}: expected shape {place.shape}, got {info.shape}; {reason}")
    array = read_floats(file, key)
    return np.ascontiguousarray(array.T) if place.transposed else array


def write_peft(
    path: str | os.PathLike[str], adapter: AdapterArrays, architecture: Architecture, base_model: str | None, dtype: str,
    write_base: Callable[[Path], None] | None = None,
) -> None:  # fmt: skip
    """Write an adapter folder that PEFT loads, atomically.

    Parameters
    ----------
    write_base : callable, optional
        Writes the base that the adapter needs instead of `base_model` into the folder it is given, a subfolder.
    dtype : "float32", "float16" or "bfloat16"
        Stored type; training goes on from float32 without loss.
    """
    entries = peft_entries(adapter, architecture, stored_dtype(dtype))
    specs = specs_by_name(architecture)
    if write_base is not None:
        base_model = name_for_people(Path(os.path.realpath(path)) / BASE_FOLDER)
    modules = [specs[name].module for name in adapter.matrices]
    config = with_sizes(file_config(adapter.config, modules, base_model), adapter.config, architecture)
    if architecture.family.left_out and "target_modules" in config:
        config["target_modules"] = _of_text_model(config["target_modules"], architecture)
    if isinstance(adapter.config, LoraConfig):
        config["fan_in_fan_out"] = any(specs[name].transposed for name in adapter.matrices)
    if architecture.labels is not None:
        config["task_type"] = "SEQ_CLS"
    before = replaced_adapter(path, "peft", with_base=write_base is not None) | files_of_stack(Path(os.path.realpath(path)))
    with atomic_folder(path, before.__contains__) as folder:
        if write_base is not None:
            write_base(folder / BASE_FOLDER)
        own_base = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
        with open(folder / ADAPTER_FILE, "wb") as file:
            metadata = listing("pt", {ADAPTER_CONFIG, ADAPTER_FILE} | own_base) | (
                architecture.labels.for_header() if architecture.labels else {}
            )
            write_safetensors(file.write, entries, metadata)
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _of_text_model(targets: Any, architecture: Architecture) -> Any:
    """Last names as an expression that leaves modules of the same name in the part for images alone."""
    if not isinstance(targets, list) or not all(name.isidentifier() for name in targets):
        return targets
    return rf"{re.escape(architecture.family.layers)}\..*\.({'|'.join(sorted(targets))})"


def stored_dtype(name: str) -> np.dtype[Any]:
    """The type of the tensors in a file."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def peft_entries(adapter: AdapterArrays, architecture: Architecture, dtype: np.dtype[Any]) -> list[TensorEntry]:
    """The tensors of the file under PEFT's names."""
    specs = specs_by_name(architecture)
    arrays: dict[str, F32] = {}
    for name, matrix in adapter.matrices.items():
        module = specs[name].module
        if specs[name].kind == "embedding":
            arrays |= {f"{module}.lora_embedding_A": matrix.B.T, f"{module}.lora_embedding_B": matrix.A.T}
            continue
        arrays |= {f"{module}.lora_A.weight": matrix.A, f"{module}.lora_B.weight": matrix.B}
        if matrix.magnitude is not None:
            arrays[f"{module}.lora_magnitude_vector"] = matrix.magnitude
    adapted = {specs[name].module for name in adapter.matrices}
    for name, array in adapter.saved.items():
        arrays[_saved_key(specs[name], adapted)] = array.T if specs[name].transposed else array
    if adapter.tokens is not None:
        arrays[specs["embed_tokens"].module + _TOKENS] = adapter.tokens.rows
    named = {PREFIX + key: array for key, array in arrays.items()} | dict(adapter.tensors)
    return [TensorEntry.of(key, np.ascontiguousarray(array).astype(dtype)) for key, array in named.items()]
