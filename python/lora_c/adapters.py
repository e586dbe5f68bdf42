"""LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

Fields that would change the result and are not supported are refused by name. Pickles are never opened.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .architectures import Architecture, WeightSpec
from .checkpoint import SafetensorsFile, TensorEntry, find_non_finite, read_json_object, write_safetensors
from .configs import LoraConfig
from .errors import AdapterError, CheckpointError, ConfigError
from .files import atomic_folder, recover_folder

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")

_READ_FIELDS = {
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "use_rslora", "rank_pattern",
    "alpha_pattern", "layers_to_transform", "layers_pattern",
}  # fmt: skip
# Fields that describe the file or guide training only.
_HARMLESS = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config",
    "megatron_config", "megatron_core", "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
# The only initialisations that leave the base weights as they are.
_PLAIN_INIT = (None, True, False, "gaussian", "eva", "orthogonal")
_DEFAULT_TARGETS = ["q_proj", "v_proj"]  # PEFT's table for these families
_PEFT_ALPHA = 8


@dataclass(frozen=True)
class AdapterTarget:
    """One adapted matrix with the rank and scale that the configuration gives it."""

    spec: WeightSpec
    r: int
    scale: float


def _matches(module: str, names: str | Iterable[str]) -> bool:
    """PEFT's rule: a string must match the whole path as a regular expression, list entries match as suffixes."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith("." + name) for name in names)


def _by_pattern(table: Mapping[str, Any], module: str, default: Any) -> Any:
    for pattern, value in table.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _in_layers(module: str, config: LoraConfig) -> bool:
    if config.layers_to_transform is None:
        return True
    wanted = config.layers_to_transform
    names = config.layers_pattern or [r"[^.]*"]
    for name in [names] if isinstance(names, str) else names:
        found = re.match(rf".*\.{name}\.(\d+)\.", module)
        if found:
            return int(found.group(1)) in ([wanted] if isinstance(wanted, int) else wanted)
    return False


def find_targets(config: LoraConfig, architecture: Architecture) -> list[AdapterTarget]:
    """Return the matrices that a configuration adapts.

    Raises
    ------
    AdapterError
        Nothing matches, a listed name matches nothing, or a name is not a projection of a layer.
    """
    projections = [spec for spec in architecture.weights() if spec.kind == "projection"]
    names = config.target_modules
    known = sorted({spec.module.rpartition(".")[2] for spec in projections})
    try:
        found = [s for s in projections if names == "all-linear" or _matches(s.module, names)]
        chosen = [s for s in found if _in_layers(s.module, config)]
        if config.exclude_modules:
            chosen = [s for s in chosen if not _matches(s.module, config.exclude_modules)]
        targets = [_target(spec, config) for spec in chosen]
    except re.error as error:
        raise AdapterError(f"target_modules: expected valid regular expressions, got: {error} in {error.pattern!r}") from None
    if isinstance(names, list):
        for name in names:
            if not any(_matches(spec.module, [name]) for spec in projections):
                raise AdapterError(f"target_modules: expected names among {', '.join(known)}, got {name!r}")
    if not targets:
        raise AdapterError(f"target_modules: expected to match one of {', '.join(known)} at least once, got {names!r}")
    return targets


def _target(spec: WeightSpec, config: LoraConfig) -> AdapterTarget:
    r = int(_by_pattern(config.rank_pattern, spec.module, config.r))
    alpha = float(_by_pattern(config.alpha_pattern, spec.module, config.lora_alpha))
    return AdapterTarget(spec, r, alpha / (math.sqrt(r) if config.use_rslora else r))


def parse_adapter_config(values: Mapping[str, Any], where: str) -> LoraConfig:
    """Turn PEFT's adapter_config.json into a `LoraConfig`.

    Raises
    ------
    AdapterError
        A field that changes the result is set and not supported.
    """
    if str(values.get("peft_type", "LORA")).upper() != "LORA":
        raise AdapterError(
            f"{where}: peft_type: expected 'LORA', got {values['peft_type']!r}; other methods are not supported"
        )
    init = values.get("init_lora_weights", True)
    if init not in _PLAIN_INIT:
        raise AdapterError(
            f"{where}: init_lora_weights: expected an initialisation that keeps the base weights, got {init!r}; convert it "
            "with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    for key, value in values.items():
        neutral = value in (None, False, [], {}, "") or (key == "bias" and value == "none")
        if key not in _READ_FIELDS | _HARMLESS and not neutral:
            raise AdapterError(
                f"{where}: {key}: expected it unset, got {str(value)[:60]!r}; this feature is not supported and would "
                "change the result, merge it with PEFT (merge_and_unload) and load the merged model"
            )
    given = {key: values[key] for key in _READ_FIELDS if values.get(key) is not None}
    given.setdefault("lora_alpha", _PEFT_ALPHA)
    given.setdefault("target_modules", _DEFAULT_TARGETS)
    for key in ("layers_pattern", "layers_to_transform", "exclude_modules"):
        if given.get(key) in ([], ""):
            del given[key]
    try:
        return LoraConfig(**given)
    except ConfigError as error:
        raise AdapterError(f"{where}: {error}") from None


def read_adapter(
    path: str | os.PathLike[str], architecture: Architecture
) -> tuple[LoraConfig, list[AdapterTarget], dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    """Read an adapter folder and check it against a base model.

    Returns
    -------
    config, targets, arrays
        `arrays` maps decoder names ("layers.0.q_proj") to float32 (A, B), A (r, in), B (out, r).

    Raises
    ------
    AdapterError
        The folder is not an adapter, needs what is not supported, or belongs to another base model.
    """
    folder = recover_folder(path)
    weights = _weights_file(folder, path)
    try:
        config = parse_adapter_config(read_json_object(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
        file = SafetensorsFile(weights)
    except CheckpointError as error:
        raise AdapterError(str(error)) from None
    try:
        targets = find_targets(config, architecture)
        return config, targets, _read_arrays(file, targets, architecture)
    finally:
        file.close()


def _weights_file(folder: Path, given: object) -> Path:
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "nothing there"
        raise AdapterError(f"{given}: expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, got {kind}")
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        if (folder / "adapter_model.bin").exists():
            raise AdapterError(
                f"{folder / 'adapter_model.bin'}: expected {WEIGHTS_FILE}, got a pickle, which can run code when opened; "
                "convert it with PEFT's save_pretrained(..., safe_serialization=True)"
            )
        raise AdapterError(f"{weights}: expected this file, got nothing there; is this an adapter folder?")
    return weights


def _read_arrays(
    file: SafetensorsFile, targets: list[AdapterTarget], architecture: Architecture
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    by_module = {target.spec.module: target for target in targets}
    modules = {spec.module: spec for spec in architecture.weights()}
    found: dict[str, dict[str, NDArray[np.float32]]] = {}
    for key in file.tensors:
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterError(f"{file.path}: {key}: expected only lora_A and lora_B weights; this tensor is not supported")
        module, part = match["module"], match["part"]
        if module not in modules:
            raise AdapterError(
                f"{file.path}: {key}: expected a module of this model, got {module!r}; it is an adapter for another base model"
            )
        if module not in by_module:
            raise AdapterError(f"{file.path}: {key}: expected a module that {CONFIG_FILE} targets, got {module!r}")
        found.setdefault(module, {})[part] = _read_part(file, key, part, by_module[module])
    arrays = {}
    for module, target in by_module.items():
        parts = found.get(module, {})
        for part in "AB":
            if part not in parts:
                key = f"{_PREFIX}{module}.lora_{part}.weight"
                raise AdapterError(f"{file.path}: expected tensor {key!r} (targeted in {CONFIG_FILE}), got a file without it")
        arrays[target.spec.name] = (parts["A"], parts["B"])
    return arrays


def _read_part(file: SafetensorsFile, key: str, part: str, target: AdapterTarget) -> NDArray[np.float32]:
    out_features, in_features = target.spec.shape
    expected = (target.r, in_features) if part == "A" else (out_features, target.r)
    info = file.tensors[key]
    if info.shape != expected:
        axis = 1 if part == "A" else 0  # the side that faces the base weight
        other_base = len(info.shape) != 2 or info.shape[axis] != expected[axis]
        reason = "this is an adapter for another base model" if other_base else f"{CONFIG_FILE} gives another rank"
        raise AdapterError(f"{file.path}: {key}: expected shape {expected}, got {info.shape}; {reason}")
    if info.dtype not in ("F32", "F16", "BF16"):
        raise AdapterError(f"{file.path}: {key}: expected F32, F16 or BF16, got {info.dtype}")
    array = file.read(key).astype(np.float32)
    bad = find_non_finite(array)
    if bad:
        raise AdapterError(f"{file.path}: {key}: expected finite numbers, got {bad[1]} at index {bad[0]}")
    return array


def init_adapter(target: AdapterTarget, config: LoraConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a fresh (A, B): A drawn from a stream of its own per module, B zero, so that the model is unchanged.

    Source: LoRA, arXiv:2106.09685, section 4.1; bounds as in PEFT (Kaiming with a = sqrt 5: 1 / sqrt(in)).
    """
    from hashlib import blake2b

    out_features, in_features = target.spec.shape
    digest = blake2b(f"{config.seed}:{target.spec.module}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(digest, np.uint64)))
    shape = (target.r, in_features)
    if config.init_lora_weights == "gaussian":
        a = generator.standard_normal(shape, np.float32) * np.float32(1 / target.r)
    else:
        a = (generator.random(shape, np.float32) * 2 - 1) * np.float32(1 / math.sqrt(in_features))
    return np.ascontiguousarray(a, np.float32), np.zeros((out_features, target.r), np.float32)


def write_adapter(
    path: str | os.PathLike[str],
    config: LoraConfig,
    arrays: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
    base_model: str | None = None,
    dtype: str = "float32",
) -> None:
    """Write an adapter folder that PEFT loads, atomically.

    Parameters
    ----------
    arrays : dict
        Module path ("model.layers.0.self_attn.q_proj") to (A, B).
    dtype : "float32" or "bfloat16"
        Stored type; training goes on from float32 without loss.
    """
    stored = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(np.float32)
    entries = []
    for module, pair in arrays.items():
        for part, array in zip("AB", pair, strict=True):
            entries.append(TensorEntry.of(f"{_PREFIX}{module}.lora_{part}.weight", np.asarray(array).astype(stored)))
    with atomic_folder(path, {CONFIG_FILE, WEIGHTS_FILE, "adapter_model.bin"}.__contains__) as folder:
        with open(folder / WEIGHTS_FILE, "wb") as file:
            write_safetensors(file.write, entries, {"format": "pt"})
        text = json.dumps(_peft_config(config, arrays, base_model), indent=2, sort_keys=True) + "\n"
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def _peft_config(config: LoraConfig, modules: Iterable[str], base_model: str | None) -> dict[str, Any]:
    names: Any = config.target_modules
    if names == "all-linear":
        names = sorted({module.rpartition(".")[2] for module in modules})
    alpha = config.lora_alpha
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "auto_mapping": None, "base_model_name_or_path": base_model,
        "revision": None, "inference_mode": True, "r": config.r,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha, "lora_dropout": config.lora_dropout,
        "target_modules": names, "exclude_modules": config.exclude_modules, "fan_in_fan_out": False, "bias": "none",
        "use_rslora": config.use_rslora, "modules_to_save": None, "init_lora_weights": config.init_lora_weights,
        "layers_to_transform": config.layers_to_transform, "layers_pattern": config.layers_pattern,
        "rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern, "use_dora": False,
    }  # fmt: skip
