"""4-bit weights in bitsandbytes' checkpoint layout: several tensors per matrix, read and written byte for byte.

Per matrix `<p>.weight`: packed codes (in bytes, or the same bytes as a wider type), `.absmax` (uint8 with `.nested_absmax` and
`.nested_quant_map`, or float32), `.quant_map`, and a JSON record in `.quant_state.bitsandbytes__nf4` or `__fp4`. Whether a
weight is quantized is decided by that record, weight by weight: folders of mixed precision leave some of them dense.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import NF4Tensor
from ..configs import FOUR_BIT, NF4_BLOCK_SIZES
from ..errors import CheckpointError
from .safetensors_file import TensorInfo, find_non_finite
from .safetensors_writer import TensorEntry

_STATE = ".quant_state.bitsandbytes__"
_KINDS = FOUR_BIT  # bitsandbytes has the first two; the others are ours, in the same layout
OF_BITSANDBYTES = ("nf4", "fp4")
_SOURCE_DTYPES = ("float32", "float16", "bfloat16")
_FIELDS = {
    "quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset", "absmax",
    "quant_map", "nested_absmax", "nested_quant_map", "bitsandbytes",
}  # fmt: skip
# What other quantizers leave in a file, should config.json not name them.
_OTHER_METHODS = {
    ".SCB": "8-bit (LLM.int8)", ".qweight": "GPTQ or AWQ", ".weight_scale_inv": "FP8", ".weight_packed": "compressed-tensors",
    ".W_q": "HQQ", "_blocks": "MXFP4",
}  # fmt: skip
_WAY_OUT = "load the model that it was made from, with quantize='nf4'"


@dataclass(frozen=True)
class QuantRecord:
    """What a file said about a matrix beyond its values, kept so that saving returns the same bytes.

    dtype: the type that the matrix had before it was quantized.
    """

    quant_map: NDArray[np.float32]
    state: bytes
    dtype: str
    code_dtype: np.dtype[Any]
    code_shape: tuple[int, ...]


def quant_type_of(file_name: str, names: Iterable[str]) -> str | None:
    """Return the 4-bit type where the checkpoint holds this weight in bitsandbytes' layout, else None."""
    return next((kind for kind in _KINDS if file_name + _STATE + kind in names), None)


def parts_of(file_name: str) -> set[str]:
    """Names of all tensors that may belong to one quantized weight."""
    ends = ("", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", *(_STATE + kind for kind in _KINDS))
    return {file_name + end for end in ends}


def refuse_other_quantization(config: dict[str, Any], names: Iterable[str] = ()) -> None:
    """Refuse quantization methods that cannot be read, by name."""
    options = config.get("quantization_config")
    options = options if isinstance(options, dict) else {}
    method = options.get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        raise CheckpointError(
            f"config.json: quant_method: expected 'bitsandbytes' in 4 bits (NF4 or FP4), got {str(method)[:60]!r}; {_WAY_OUT}"
        )
    if options.get("load_in_8bit") or options.get("_load_in_8bit"):
        raise CheckpointError(
            f"config.json: load_in_8bit: expected 4-bit weights (NF4 or FP4), got 8-bit ones (LLM.int8); {_WAY_OUT}"
        )
    if isinstance(config.get("quantization"), dict):
        raise CheckpointError(f"config.json: quantization: expected nothing, got MLX's integer quantization; {_WAY_OUT}")
    for name in names:
        for end, method in _OTHER_METHODS.items():
            if name.endswith(end):
                raise CheckpointError(f"{name}: expected dense, NF4 or FP4 weights, got {method}; {_WAY_OUT}")


def read_4bit(
    name: str, shape: tuple[int, ...], tensors: dict[str, TensorInfo], read: Callable[[str], NDArray[Any]]
) -> tuple[NF4Tensor, QuantRecord]:
    """Assemble one matrix of this shape from its tensors.

    Raises
    ------
    CheckpointError
        A part is missing or contradicts the others.
    """
    kind = quant_type_of(name, tensors)
    if kind is None:
        raise CheckpointError(f"{name}: expected a weight in 4 bits, got one without the record {_STATE}nf4")

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

    state = part(_STATE + kind, "U8").tobytes()
    nested = name + ".nested_absmax" in tensors  # some tools write the fields of nesting where there is none
    fields = _parse_state(name + _STATE + kind, kind, state, shape, nested)
    block, rows, cols = fields["blocksize"], *shape
    count = rows * cols
    n_blocks = -(-count // block)
    info = tensors.get(name)
    if info is None or info.end - info.start != (count + 1) // 2:
        raise CheckpointError(f"{name}: expected {(count + 1) // 2} bytes of codes, got {info and info.end - info.start}")
    raw = np.array(read(name))
    quant_map = part(".quant_map", "F32", (16,))
    scales: dict[str, Any] = {}
    if not nested:
        scales["absmax"] = part(".absmax", "F32", (n_blocks,))
    else:
        nested_block = fields["nested_blocksize"]
        scales |= {
            "absmax_codes": part(".absmax", "U8", (n_blocks,)),
            "nested_absmax": part(".nested_absmax", "F32", (-(-n_blocks // nested_block),)),
            "nested_map": part(".nested_quant_map", "F32", (256,)),
            "nested_offset": fields["nested_offset"],
            "nested_block_size": nested_block,
        }
    codes = raw.reshape(-1).view(np.uint8)
    tensor = NF4Tensor.from_parts(codes, (rows, cols), block_size=block, quant_type=kind, lut=quant_map, **scales)
    _check_range(name, tensor)
    return tensor, QuantRecord(quant_map, state, fields["dtype"], raw.dtype, raw.shape)


def quant_options(name: str, tensors: dict[str, TensorInfo], read: Callable[[str], NDArray[Any]]) -> tuple[int, bool]:
    """Return how many weights have one scale in a quantized matrix, and whether its scales are quantized, too."""
    where = f"{name}{_STATE}{quant_type_of(name, tensors)}"
    try:
        block = json.loads(np.array(read(where)).tobytes().decode("utf-8"))["blocksize"]
    except (ValueError, KeyError, TypeError, RecursionError):
        block = 0
    if type(block) is not int or block not in NF4_BLOCK_SIZES:
        raise CheckpointError(f"{where}: blocksize: expected one of {NF4_BLOCK_SIZES}, got {str(block)[:60]}")
    return block, f"{name}.nested_absmax" in tensors


def _check_range(name: str, tensor: NF4Tensor) -> None:
    """Tables and scales are finite each; so must be every product of them."""
    with np.errstate(over="ignore", invalid="ignore"):
        if tensor.absmax is not None:
            scales = tensor.absmax
        else:
            nested = np.repeat(np.asarray(tensor.nested_absmax), tensor.nested_block_size)
            codes = np.asarray(tensor.absmax_codes)
            scales = np.asarray(tensor.nested_map)[codes] * nested[: codes.size] + np.float32(tensor.nested_offset)
        largest = np.abs(tensor.lut).max() * np.abs(scales)
    bad = find_non_finite(largest)
    if bad:
        raise CheckpointError(f"{name}: expected scales that decode to finite numbers, got {bad[1]} at block {bad[0][0]}")


def _parse_state(where: str, kind: str, state: bytes, shape: tuple[int, ...], nested: bool) -> dict[str, Any]:
    try:
        fields = json.loads(state.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: expected a JSON record, got: {error}") from None
    if not isinstance(fields, dict) or set(fields) - _FIELDS:
        raise CheckpointError(f"{where}: expected an object with the fields of a quantization state, got {str(fields)[:60]}")

    def refuse(field: str, expected: object) -> CheckpointError:
        return CheckpointError(f"{where}: {field}: expected {expected}, got {str(fields.get(field))[:60]}")

    if fields.get("quant_type") != kind:
        raise refuse("quant_type", repr(kind))
    if fields.get("shape") != list(shape):
        raise refuse("shape", list(shape))
    if type(fields.get("blocksize")) is not int or fields["blocksize"] not in NF4_BLOCK_SIZES:
        raise refuse("blocksize", f"one of {NF4_BLOCK_SIZES}")
    if fields.get("dtype") not in _SOURCE_DTYPES:
        raise refuse("dtype", f"one of {', '.join(_SOURCE_DTYPES)}")
    if nested:
        offset = fields.get("nested_offset")
        if type(offset) not in (int, float) or not abs(offset) <= float(np.finfo(np.float32).max):
            raise refuse("nested_offset", "a finite number")
        if type(fields.get("nested_blocksize")) is not int or not 0 < fields["nested_blocksize"] <= 4096:
            raise refuse("nested_blocksize", "1 to 4096")
    return fields


def nf4_entries(file_name: str, tensor: NF4Tensor, dtype: str, record: QuantRecord | None) -> list[TensorEntry]:
    """Return the tensors that store one matrix. dtype: the type it was quantized from ("bfloat16", ...)."""
    kind = tensor.quant_type
    fields: dict[str, Any] = {
        "quant_type": kind, "blocksize": tensor.block_size, "dtype": dtype, "shape": list(tensor.shape)
    }  # fmt: skip
    codes: NDArray[Any] = np.asarray(tensor.codes, np.uint8).reshape(-1)
    entries = []
    if tensor.double_quant:
        nested_block, offset = tensor.nested_block_size, float(tensor.nested_offset)
        fields |= {"nested_blocksize": nested_block, "nested_dtype": "float32", "nested_offset": offset}
        entries.append(TensorEntry.of(file_name + ".absmax", np.asarray(tensor.absmax_codes, np.uint8)))
        entries.append(TensorEntry.of(file_name + ".nested_absmax", np.asarray(tensor.nested_absmax, np.float32)))
        entries.append(TensorEntry.of(file_name + ".nested_quant_map", np.asarray(tensor.nested_map, np.float32)))
    else:
        entries.append(TensorEntry.of(file_name + ".absmax", np.asarray(tensor.absmax, np.float32)))
    quant_map, state = np.asarray(tensor.lut, np.float32), json.dumps(fields).encode("utf-8")
    if record is not None:
        quant_map, state = record.quant_map, record.state
        codes = codes.view(record.code_dtype).reshape(record.code_shape)
    else:
        codes = codes.reshape(-1, 1)
    entries.append(TensorEntry.of(file_name, codes))
    entries.append(TensorEntry.of(file_name + ".quant_map", quant_map))
    entries.append(TensorEntry.of(file_name + _STATE + kind, np.frombuffer(state, np.uint8)))
    return entries


def quantization_config(
    quant_type: str, double_quant: bool, compute_dtype: str, dense_modules: list[str], head: bool
) -> dict[str, Any]:
    """Return the quantization_config of config.json, as transformers writes it.

    dense_modules: projections that are not quantized. head: whether lm_head is; where no list is given, transformers leaves it
    dense, and nothing else.
    """
    skipped = dense_modules if head else ["lm_head", *dense_modules] if dense_modules else None
    return {
        "_load_in_4bit": True, "_load_in_8bit": False, "bnb_4bit_compute_dtype": compute_dtype,
        "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": quant_type, "bnb_4bit_use_double_quant": double_quant,
        "llm_int8_enable_fp32_cpu_offload": False, "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": skipped,
        "llm_int8_threshold": 6.0, "load_in_4bit": True, "load_in_8bit": False, "quant_method": "bitsandbytes",
    }  # fmt: skip
