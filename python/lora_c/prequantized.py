"""NF4 weights in bitsandbytes' checkpoint layout: several tensors per matrix, read and written byte for byte.

Per matrix `<p>.weight`: packed codes, `.absmax` (uint8 with `.nested_absmax` and `.nested_quant_map`, or float32),
`.quant_map`, and a JSON record in `.quant_state.bitsandbytes__nf4`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._core import NF4Tensor
from .architectures import WeightSpec
from .checkpoint import TensorEntry, TensorInfo, find_non_finite
from .configs import NF4_BLOCK_SIZES
from .errors import CheckpointError

NESTED_BLOCK = 256
_STATE = ".quant_state.bitsandbytes__"
# The 16 NormalFloat values. Source: QLoRA, arXiv:2305.14314, appendix E.
NF4_VALUES = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
    np.float32,
)  # fmt: skip
_FIELDS = {
    "quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset", "absmax",
    "quant_map", "nested_absmax", "nested_quant_map", "bitsandbytes",
}  # fmt: skip


@dataclass(frozen=True)
class QuantRecord:
    """What a file said about a matrix beyond its values, kept so that saving returns the same bytes."""

    quant_map: NDArray[np.float32]
    nested_quant_map: NDArray[np.float32] | None
    state: bytes
    code_dtype: np.dtype[Any]
    code_shape: tuple[int, ...]


def is_prequantized(file_name: str, tensors: dict[str, TensorInfo]) -> bool:
    """Whether the checkpoint holds this weight in bitsandbytes' 4-bit layout."""
    return any(file_name + _STATE + kind in tensors for kind in ("nf4", "fp4"))


def parts_of(file_name: str) -> set[str]:
    """Names of all tensors that may belong to one quantized weight."""
    ends = ("", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", _STATE + "nf4")
    return {file_name + end for end in ends}


def refuse_other_quantization(config: dict[str, Any]) -> None:
    """Refuse quantization methods that cannot be read, by name."""
    options = config.get("quantization_config")
    if not isinstance(options, dict):
        return
    method = options.get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        raise CheckpointError(
            f"config.json: quant_method: expected 'bitsandbytes' (NF4), got {method!r}; load the original model"
        )
    if options.get("load_in_8bit") or options.get("_load_in_8bit"):
        raise CheckpointError("config.json: load_in_8bit: expected NF4 weights, got 8-bit ones; load the original model")


def read_nf4(
    spec: WeightSpec, tensors: dict[str, TensorInfo], read: Callable[[str], NDArray[Any]]
) -> tuple[NF4Tensor, QuantRecord]:
    """Assemble one matrix from its tensors.

    Raises
    ------
    CheckpointError
        A part is missing or contradicts the others.
    """
    name = spec.file_name
    if name + _STATE + "fp4" in tensors:
        raise CheckpointError(f"{name}: expected NF4, got FP4, which is not supported; quantize the original model to NF4")

    def part(end: str, dtype: str, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
        info = tensors.get(name + end)
        if info is None:
            raise CheckpointError(f"{name + end}: expected this tensor of a quantized weight, got none of that name")
        if info.dtype != dtype or (shape is not None and info.shape != shape):
            raise CheckpointError(f"{name + end}: expected {dtype} {shape or ''}, got {info.dtype} {info.shape}")
        array = np.array(read(name + end))
        if dtype == "F32":
            bad = find_non_finite(array)
            if bad:
                raise CheckpointError(f"{name + end}: expected finite numbers, got {bad[1]} at index {bad[0]}")
        return array

    state = part(_STATE + "nf4", "U8").tobytes()
    fields = _parse_state(name, state, spec)
    block, rows, cols = fields["blocksize"], *spec.shape
    count = rows * cols
    n_blocks = -(-count // block)
    info = tensors.get(name)
    if info is None or info.end - info.start != (count + 1) // 2:
        raise CheckpointError(f"{name}: expected {(count + 1) // 2} bytes of codes, got {info and info.end - info.start}")
    raw = np.array(read(name))
    codes = raw.reshape(-1).view(np.uint8)
    quant_map = part(".quant_map", "F32", (16,))
    nested = "nested_offset" in fields
    record = QuantRecord(quant_map, part(".nested_quant_map", "F32", (256,)) if nested else None, state, raw.dtype, raw.shape)
    if not nested:
        tensor = NF4Tensor.from_parts(
            codes, (rows, cols), block_size=block, absmax=part(".absmax", "F32", (n_blocks,)), lut=quant_map
        )
        return tensor, record
    nested_block = fields["nested_blocksize"]
    tensor = NF4Tensor.from_parts(
        codes,
        (rows, cols),
        block_size=block,
        absmax_codes=part(".absmax", "U8", (n_blocks,)),
        nested_absmax=part(".nested_absmax", "F32", (-(-n_blocks // nested_block),)),
        nested_map=record.nested_quant_map,
        nested_offset=fields["nested_offset"],
        nested_block_size=nested_block,
        lut=quant_map,
    )
    return tensor, record


def _parse_state(name: str, state: bytes, spec: WeightSpec) -> dict[str, Any]:
    where = name + _STATE + "nf4"
    try:
        fields = json.loads(state.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: expected a JSON record, got: {error}") from None
    if not isinstance(fields, dict) or set(fields) - _FIELDS:
        raise CheckpointError(f"{where}: expected an object with the fields of a quantization state, got {str(fields)[:60]}")
    if fields.get("quant_type") != "nf4":
        raise CheckpointError(f"{where}: quant_type: expected 'nf4', got {fields.get('quant_type')!r}")
    if fields.get("shape") != list(spec.shape):
        raise CheckpointError(f"{where}: shape: expected {list(spec.shape)}, got {fields.get('shape')}")
    if fields.get("blocksize") not in NF4_BLOCK_SIZES:
        raise CheckpointError(f"{where}: blocksize: expected one of {NF4_BLOCK_SIZES}, got {fields.get('blocksize')!r}")
    if "nested_offset" in fields:
        offset, nested = fields["nested_offset"], fields.get("nested_blocksize")
        if not isinstance(offset, (int, float)) or not np.isfinite(offset):
            raise CheckpointError(f"{where}: nested_offset: expected a finite number, got {offset!r}")
        if type(nested) is not int or not 0 < nested <= 4096:
            raise CheckpointError(f"{where}: nested_blocksize: expected 1 to 4096, got {nested!r}")
    return fields


def nf4_entries(file_name: str, tensor: NF4Tensor, dtype: str, record: QuantRecord | None) -> list[TensorEntry]:
    """Return the tensors that store one matrix. dtype: the type it was quantized from ("bfloat16", ...)."""
    rows, cols = tensor.shape
    fields: dict[str, Any] = {"quant_type": "nf4", "blocksize": tensor.block_size, "dtype": dtype, "shape": [rows, cols]}
    codes: NDArray[Any] = np.asarray(tensor.codes, np.uint8).reshape(-1)
    entries = []
    if tensor.double_quant:
        fields |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": float(tensor.nested_offset)}
        entries.append(TensorEntry.of(file_name + ".absmax", np.asarray(tensor.absmax_codes, np.uint8)))
        entries.append(TensorEntry.of(file_name + ".nested_absmax", np.asarray(tensor.nested_absmax, np.float32)))
        entries.append(TensorEntry.of(file_name + ".nested_quant_map", np.asarray(tensor.nested_map, np.float32)))
    else:
        entries.append(TensorEntry.of(file_name + ".absmax", np.asarray(tensor.absmax, np.float32)))
    quant_map, state = NF4_VALUES, json.dumps(fields).encode("utf-8")
    if record is not None:
        quant_map, state = record.quant_map, record.state
        codes = codes.view(record.code_dtype).reshape(record.code_shape)
    else:
        codes = codes.reshape(-1, 1)
    entries.append(TensorEntry.of(file_name, codes))
    entries.append(TensorEntry.of(file_name + ".quant_map", quant_map))
    entries.append(TensorEntry.of(file_name + _STATE + "nf4", np.frombuffer(state, np.uint8)))
    return entries


def quantization_config(double_quant: bool, compute_dtype: str) -> dict[str, Any]:
    """Return the quantization_config of config.json, as transformers writes it."""
    return {
        "_load_in_4bit": True, "_load_in_8bit": False, "bnb_4bit_compute_dtype": compute_dtype,
        "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double_quant,
        "llm_int8_enable_fp32_cpu_offload": False, "llm_int8_has_fp16_weight": False, "llm_int8_skip_modules": None,
        "llm_int8_threshold": 6.0, "load_in_4bit": True, "load_in_8bit": False, "quant_method": "bitsandbytes",
    }  # fmt: skip
