"""LoRA adapters as GGUF files: general.type = adapter, `<tensor>.lora_a` (r, in) and `<tensor>.lora_b` (out, r).

llama.cpp scales every matrix with adapter.lora.alpha / r, so what a matrix has beyond that (rsLoRA, patterns) goes into its B.
Source: llama_adapter_lora_init_impl and convert_lora_to_gguf.py of llama.cpp.
"""

from __future__ import annotations

import math
import os
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .._core import GGMLTensor
from ..checkpoints.safetensors_file import find_non_finite
from ..configs import LoraConfig
from ..errors import AdapterError, CheckpointError
from ..families.architectures import Architecture
from ..files.atomic import atomic_file
from ..gguf.checkpoint import deinterleave, interleave
from ..gguf.families import GGUFFamily, family_of_architecture
from ..gguf.format import Kind, Value
from ..gguf.reader import GGUFFile
from ..gguf.writer import GGUFEntry, array, float32, text, write_gguf
from .data import AdapterArrays, MatrixArrays, specs_by_name

_TYPES = {"float32": ("F32", np.float32), "float16": ("F16", np.float16), "bfloat16": ("BF16", ml_dtypes.bfloat16)}


def write_adapter(
    path: str | os.PathLike[str], adapter: AdapterArrays, architecture: Architecture, dtype: str = "float32"
) -> None:
    """Write an adapter that llama.cpp loads, atomically.

    Parameters
    ----------
    dtype : "float32", "float16" or "bfloat16"

    Raises
    ------
    AdapterError
        The adapter holds what the format cannot: DoRA, whole tensors, trained rows of the embedding, a base of its own.
    """
    specs = specs_by_name(architecture)
    _refuse_more_than_lora(adapter, [name for name in adapter.matrices if specs[name].kind != "projection"])
    family = family_of_architecture(architecture.family.architecture)
    alpha = _common_alpha(adapter)
    kind, target = _TYPES[dtype]
    entries: list[GGUFEntry] = []
    for name, matrix in adapter.matrices.items():
        file_name = specs[name].file_name
        ratio = matrix.scale * matrix.r / alpha
        B = np.asarray(matrix.B, np.float32) * np.float32(ratio) if abs(ratio - 1) > 1e-6 else np.asarray(matrix.B, np.float32)
        heads = family.heads_key(file_name)
        if heads is not None:
            B = interleave(B, int(architecture.decoder_kwargs[heads]))
        for part, factor in (("lora_a", matrix.A), ("lora_b", B)):
            stored = np.ascontiguousarray(factor).astype(target)
            entries.append(GGUFEntry(f"{family.to_file(file_name)}.{part}", kind, stored.shape, lambda x=stored: x))  # type: ignore[misc]
    values: dict[str, Value] = {
        "general.architecture": text(family.arch), "general.type": text("adapter"), "adapter.type": text("lora"),
        "adapter.lora.alpha": float32(alpha),
    }  # fmt: skip
    tokens = getattr(adapter.config, "alora_invocation_tokens", None)
    if tokens:
        values["adapter.alora.invocation_tokens"] = array(tokens, Kind.UINT32)
    with atomic_file(path) as file:
        write_gguf(file.write, values, entries)


def _refuse_more_than_lora(adapter: AdapterArrays, globals: list[str]) -> None:
    has = {
        "DoRA's magnitudes": any(matrix.magnitude is not None for matrix in adapter.matrices.values()),
        "whole tensors (modules_to_save, bias)": bool(adapter.saved),
        "trained rows of the embedding": adapter.tokens is not None,
        "an update of the embedding or the head": bool(globals),
        "weights of its own (PiSSA, OLoRA, LoftQ)": bool(adapter.residual_base),
    }
    for what, present in has.items():
        if present:
            raise AdapterError(
                f"GGUF adapter: expected A and B only, got an adapter with {what}, which llama.cpp cannot load; merge it and "
                "write the merged model as GGUF"
            )


def _common_alpha(adapter: AdapterArrays) -> float:
    """The alpha for which most matrices need no change of B."""
    alphas = [round(matrix.scale * matrix.r, 6) for matrix in adapter.matrices.values()]
    return max(set(alphas), key=alphas.count) or 1.0


def read_adapter(path: str | os.PathLike[str], architecture: Architecture) -> AdapterArrays:
    """Read a GGUF adapter and check it against a base model.

    Raises
    ------
    AdapterError
        The file is damaged, no LoRA adapter, or made for another base model.
    """
    try:
        file = GGUFFile(path)
    except CheckpointError as error:
        raise AdapterError(str(error)) from None
    try:
        return _read(file, architecture)
    except CheckpointError as error:
        raise AdapterError(str(error)) from None
    finally:
        file.close()


def _read(file: GGUFFile, architecture: Architecture) -> AdapterArrays:
    family = family_of_architecture(architecture.family.architecture)
    for key, expected in (("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", family.arch)):
        if file.get(key) != expected:
            raise AdapterError(f"{file.path}: {key}: expected {expected!r}, got {file.get(key)!r}; is it for this model?")
    if file.get("adapter.alora.invocation_tokens") is not None:
        raise AdapterError(
            f"{file.path}: adapter.alora.invocation_tokens: expected it unset, got tokens; this is not supported"
        )
    alpha = file.get("adapter.lora.alpha")
    if type(alpha) is not float or not math.isfinite(alpha) or alpha <= 0:
        raise AdapterError(f"{file.path}: adapter.lora.alpha: expected a positive number, got {alpha!r}")
    alpha = float(str(np.float32(alpha)))
    by_file_name = {family.to_file(spec.file_name): spec for spec in architecture.weights() if spec.kind == "projection"}
    parts: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name in file.tensors:
        base, _, part = name.rpartition(".")
        if part not in ("lora_a", "lora_b") or base not in by_file_name:
            raise AdapterError(
                f"{file.path}: {name}: expected lora_a or lora_b of a projection of this model; is it for another one?"
            )
        parts.setdefault(base, {})[part] = _dense(file, name)
    if not parts:
        raise AdapterError(f"{file.path}: expected lora_a and lora_b of at least one matrix, got none")
    matrices = {}
    for base, found in parts.items():
        spec = by_file_name[base]
        matrices[spec.name] = _matrix(file, family, base, found, spec.file_name, spec.shape, architecture, alpha)
    return AdapterArrays(_config_of(matrices, {spec.name: spec.module for spec in by_file_name.values()}, alpha), matrices)


def _dense(file: GGUFFile, name: str) -> NDArray[np.float32]:
    value = file.read(name)
    values = value.dequantize() if isinstance(value, GGMLTensor) else np.array(value, np.float32)
    bad = find_non_finite(values)
    if bad or values.ndim != 2:
        got = f"{bad[1]} at index {bad[0]}" if bad else f"{values.ndim} dimensions"
        raise AdapterError(f"{file.path}: {name}: expected a matrix of finite numbers, got {got}")
    return values


def _matrix(
    file: GGUFFile, family: GGUFFamily, base: str, found: dict[str, NDArray[np.float32]], file_name: str,
    shape: tuple[int, ...], architecture: Architecture, alpha: float,
) -> MatrixArrays:  # fmt: skip
    if set(found) != {"lora_a", "lora_b"}:
        raise AdapterError(f"{file.path}: {base}: expected lora_a and lora_b, got {', '.join(sorted(found))} alone")
    A, B = found["lora_a"], found["lora_b"]
    if A.shape[1] != shape[1] or B.shape != (shape[0], A.shape[0]):
        raise AdapterError(
            f"{file.path}: {base}: expected lora_a (r, {shape[1]}) and lora_b ({shape[0]}, r), got {A.shape} and {B.shape}; "
            "it is an adapter for another base model"
        )
    heads = family.heads_key(file_name)
    if heads is not None:
        B = deinterleave(B, int(architecture.decoder_kwargs[heads]))
    return MatrixArrays(A, B, alpha / A.shape[0])


def _config_of(matrices: dict[str, MatrixArrays], modules: dict[str, str], alpha: float) -> LoraConfig:
    """A configuration that means exactly these matrices."""
    ranks = [matrix.r for matrix in matrices.values()]
    r = max(set(ranks), key=ranks.count)
    options: dict[str, Any] = {"r": r, "lora_alpha": alpha, "target_modules": [modules[name] for name in matrices]}
    last = {name: module.rpartition(".")[2] for name, module in modules.items()}
    adapted = {last[name] for name in matrices}
    if {name for name in modules if last[name] in adapted} == set(matrices):
        options["target_modules"] = sorted(adapted)
    options["rank_pattern"] = {modules[name]: matrix.r for name, matrix in matrices.items() if matrix.r != r}
    return LoraConfig(**options)
