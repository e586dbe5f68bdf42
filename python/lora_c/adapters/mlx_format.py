"""Adapters as mlx-lm stores them: `adapter_config.json` and `adapters.safetensors`.

`lora_a` (in, r) and `lora_b` (r, out) are the transposes of PEFT's A and B, `m` is DoRA's magnitude. `scale` is the factor
itself, not an alpha. `num_layers` counts from the top: the last n layers, all for -1. Names of modules are within a layer.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.safetensors_file import SafetensorsFile
from ..checkpoints.safetensors_writer import TensorEntry, write_safetensors
from ..checkpoints.written import ADAPTER_CONFIG, MLX_FILE, listing, replaced_adapter
from ..configs import LoraConfig
from ..errors import AdapterError, CheckpointError, ConfigError
from ..families.architectures import Architecture, WeightSpec
from ..files.atomic import atomic_folder
from ..files.json_files import read_json_object
from .data import F32, AdapterArrays, MatrixArrays, specs_by_name
from .floats import read_floats
from .peft_format import stored_dtype
from .targets import describe_targets

_KEY = re.compile(r"(?P<module>.+)\.(?P<part>lora_a|lora_b|m)")
_LAYER = re.compile(r".*\.(?P<index>\d+)\.(?P<rest>[^\d].*)")


def read_mlx(folder: Path, architecture: Architecture) -> AdapterArrays:
    """Read an adapter folder of mlx-lm and check it against a base model.

    Raises
    ------
    AdapterError
        It is damaged, of another kind, or for another base model.
    """
    where = folder / ADAPTER_CONFIG
    try:
        values = read_json_object(where)
        file = SafetensorsFile(folder / MLX_FILE)
    except CheckpointError as error:
        raise AdapterError(str(error)) from None
    try:
        scale, dropout, dora = parse_mlx_config(values, str(where))
        matrices = _matrices(file, architecture, scale, dora)
    finally:
        file.close()
    if not matrices:
        raise AdapterError(f"{file.path}: expected lora_a and lora_b of some projections, got none")
    return AdapterArrays(_config(matrices, architecture, scale, dropout, dora), matrices)


def parse_mlx_config(values: Mapping[str, Any], where: str) -> tuple[float, float, bool]:
    """Return (scale, dropout, DoRA or not) of an adapter_config.json of mlx-lm.

    Raises
    ------
    AdapterError
        It asks for what is not supported.
    """
    kind = values.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise AdapterError(f"{where}: fine_tune_type: expected 'lora' or 'dora', got {kind!r}; fuse it with mlx_lm.fuse first")
    parameters = values.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise AdapterError(f"{where}: lora_parameters: expected rank, scale and dropout, got {str(parameters)[:60]!r}")
    scale, dropout = parameters.get("scale"), parameters.get("dropout", 0.0)
    for name, value in (("scale", scale), ("dropout", dropout)):
        if type(value) not in (int, float) or not abs(value) <= float(np.finfo(np.float32).max):
            raise AdapterError(f"{where}: lora_parameters.{name}: expected a number, got {repr(value)[:80]}")
    return float(scale), float(dropout), kind == "dora"  # type: ignore[arg-type]


def _matrices(file: SafetensorsFile, architecture: Architecture, scale: float, dora: bool) -> dict[str, MatrixArrays]:
    projections = {_module(spec, architecture): spec for spec in architecture.weights() if spec.kind == "projection"}
    parts: dict[str, dict[str, F32]] = {}
    for key in file.tensors:
        match = _KEY.fullmatch(key)
        if match is None or match["module"] not in projections or (match["part"] == "m") > dora:
            known = "lora_a, lora_b or m" if dora else "lora_a or lora_b"
            raise AdapterError(
                f"{file.path}: {key[:120]}: expected {known} of a projection of this model, got this tensor; it is not "
                "supported, or the adapter is for another base model"
            )
        parts.setdefault(match["module"], {})[match["part"]] = read_floats(file, key)
    names = ("lora_a", "lora_b", "m") if dora else ("lora_a", "lora_b")
    matrices = {}
    for module, spec in projections.items():
        if module in parts:
            _check_parts(parts[module], names, spec, file)
            a, b = parts[module]["lora_a"], parts[module]["lora_b"]
            matrices[spec.name] = MatrixArrays(
                np.ascontiguousarray(a.T), np.ascontiguousarray(b.T), scale, parts[module].get("m")
            )
    return matrices


def _module(spec: WeightSpec, architecture: Architecture) -> str:
    """The module's path in mlx-lm, which has the text model of a larger one under language_model.model."""
    return (
        spec.module.replace("model.language_model.", "language_model.model.", 1)
        if architecture.family.text_of
        else spec.module
    )


def _check_parts(found: Mapping[str, F32], names: tuple[str, ...], spec: WeightSpec, file: SafetensorsFile) -> None:
    out, inner = spec.shape
    for name in names:
        if name not in found:
            raise AdapterError(f"{file.path}: expected tensor {f'{spec.module}.{name}'!r}, got a file without it")
    r = found["lora_a"].shape[-1] if found["lora_a"].ndim == 2 else 0
    for name, shape in (("lora_a", (inner, r)), ("lora_b", (r, out)), ("m", (out,))):
        if name in found and (found[name].shape != shape or r == 0):
            raise AdapterError(
                f"{file.path}: {spec.module}.{name}: expected shape {shape}, got {found[name].shape}; this is an adapter for "
                "another base model"
            )


def _config(
    matrices: Mapping[str, MatrixArrays], architecture: Architecture, scale: float, dropout: float, dora: bool
) -> LoraConfig:
    modules = {spec.name: spec.module for spec in architecture.weights()}
    r = max(matrix.r for matrix in matrices.values())
    others = {f"^{modules[name].replace('.', '[.]')}": m.r for name, m in matrices.items() if m.r != r}
    try:
        return LoraConfig(
            r=r, lora_alpha=scale * r, lora_dropout=dropout, use_dora=dora,
            target_modules=describe_targets(matrices, architecture), rank_pattern=others,
            alpha_pattern={module: scale * rank for module, rank in others.items()},
        )  # fmt: skip
    except ConfigError as error:
        raise AdapterError(f"mlx adapter: {error}") from None


def write_mlx(
    path: str | os.PathLike[str], adapter: AdapterArrays, architecture: Architecture, base_model: str | None, dtype: str
) -> None:
    """Write an adapter folder that mlx-lm loads, atomically.

    mlx-lm has one rank and one scale for all matrices: smaller ranks are filled up with zeros, other scales go into lora_b.

    Raises
    ------
    AdapterError
        The adapter holds what the format has no place for.
    """
    if adapter.saved or adapter.tokens is not None:
        what = next(iter(adapter.saved), "trained token rows")
        raise AdapterError(
            f"{path}: expected an adapter of low-rank updates only, got one with {what}; MLX has no place for it"
        )
    specs = specs_by_name(architecture)
    other = next((name for name in adapter.matrices if specs[name].kind != "projection"), None)
    if other is not None:
        raise AdapterError(
            f"{path}: expected an adapter of the layers only, got one that adapts {other}; MLX has no place for it"
        )
    r = max(matrix.r for matrix in adapter.matrices.values())
    scale = max((matrix.scale for matrix in adapter.matrices.values()), key=abs)
    arrays: dict[str, F32] = {}
    layers, keys = set(), set()
    for name, matrix in adapter.matrices.items():
        module = _module(specs[name], architecture)
        match = _LAYER.fullmatch(module)
        assert match is not None  # projections lie in layers
        layers.add(int(match["index"]))
        keys.add(match["rest"])
        missing = r - matrix.r
        arrays[f"{module}.lora_a"] = np.pad(matrix.A, ((0, missing), (0, 0))).T
        arrays[f"{module}.lora_b"] = np.pad(matrix.B * np.float32(matrix.scale / scale), ((0, 0), (0, missing))).T
        if matrix.magnitude is not None:
            arrays[f"{module}.m"] = matrix.magnitude
    depth = int(architecture.decoder_kwargs["num_hidden_layers"])
    config = {
        "fine_tune_type": "dora" if adapter.config.use_dora else "lora", "num_layers": depth - min(layers),
        "lora_parameters": {"rank": r, "scale": scale, "dropout": adapter.config.lora_dropout, "keys": sorted(keys)},
        "model": base_model,
    }  # fmt: skip
    stored = stored_dtype(dtype)
    entries = [TensorEntry.of(key, np.ascontiguousarray(array).astype(stored)) for key, array in arrays.items()]
    before = replaced_adapter(path, "mlx")
    with atomic_folder(path, before.__contains__) as folder:
        with open(folder / MLX_FILE, "wb") as out:
            write_safetensors(out.write, entries, listing("mlx", {ADAPTER_CONFIG, MLX_FILE}))
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=4, sort_keys=True) + "\n", encoding="utf-8")
