"""Folding an adapter into its base: W + s B A. After it, inference costs exactly what the base costs.

Source: LoRA, arXiv:2106.09685, section 4.1 ("no additional inference latency").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ._core import LoRALinear, NF4Tensor, Parameter
from .checkpoint import find_non_finite
from .errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from .model import LoadedAdapter, Model

MergeDtype = Literal["float32", "bfloat16", "nf4"]


def dense(weight: Any) -> NDArray[Any]:
    """Return a weight as an array: float32 for NF4, unchanged for dense ones."""
    if isinstance(weight, NF4Tensor):
        return weight.dequantize()
    return weight.data if isinstance(weight, Parameter) else weight


def merged_weight(weight: Any, adapter: LoadedAdapter, sign: float = 1.0) -> NDArray[np.float32]:
    """Return W + sign * s * B * A in float32, (out, in), each element rounded once."""
    base = weight.data if isinstance(weight, Parameter) else weight
    r = adapter.A.shape[0]
    layer = LoRALinear(base, r, lora_alpha=adapter.scale * r, A=adapter.A.data, B=adapter.B.data)
    return layer.merge(sign=sign)


def merge_model(model: Model, dtype: MergeDtype = "float32") -> Model:
    """Return a new model with the adapter folded in; the given model keeps its own.

    Parameters
    ----------
    dtype : "float32", "bfloat16" or "nf4"
        Type of the weight matrices of the result. "nf4" quantizes W + s B A again, with the block size of the base;
        matrices without an adapter keep their codes. That rounding can change outputs: compare before shipping.

    Raises
    ------
    AdapterError
        There is no adapter, or the merged weights are not finite.
    """
    if dtype not in ("float32", "bfloat16", "nf4"):
        raise ConfigError(f"dtype: expected 'float32', 'bfloat16' or 'nf4', got {dtype!r}")
    if model.adapter_config is None and not model.is_merged:
        raise AdapterError("merge: expected a model with an adapter, got none; call add_adapter or load_adapter first")
    weights, stored = {}, dict(model.stored_dtypes)
    records = {}
    for spec in model.architecture.weights():
        weight, adapter = model.weights[spec.name], model.adapters.get(spec.name)
        if model.is_merged:
            adapter = None
        if spec.kind == "vector":
            weights[spec.name] = np.array(dense(weight), np.float32)
        elif spec.kind == "projection":
            weights[spec.name] = _merge_one(model, spec.module, weight, adapter, dtype)
            if adapter is None and weights[spec.name] is weight and spec.name in model.quant_records:
                records[spec.name] = model.quant_records[spec.name]
        else:
            weights[spec.name] = _cast(dense(weight), stored[spec.name].name if dtype == "nf4" else dtype)
        if dtype != "nf4":
            stored[spec.name] = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    return model.with_weights(weights, stored, records)


def _merge_one(model: Model, module: str, weight: Any, adapter: LoadedAdapter | None, dtype: MergeDtype) -> Any:
    if adapter is None:
        if dtype == "nf4" and isinstance(weight, NF4Tensor):
            return weight
        array = dense(weight)
    else:
        array = merged_weight(weight, adapter)
        bad = find_non_finite(array)
        if bad:
            raise AdapterError(f"merge: {module}: expected finite numbers, got {bad[1]} at index {bad[0]}; check the adapter")
    if dtype == "nf4":
        block, double = model.nf4_options
        return NF4Tensor.quantize(np.ascontiguousarray(array), block_size=block, double_quant=double)
    return _cast(array, dtype)


def _cast(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    return np.array(array, ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)


def fold_in_place(model: Model, sign: float) -> None:
    """Add (sign 1) or take away (sign -1) s B A in the model's own weights.

    Raises
    ------
    AdapterError
        A weight is not float32: rounding would make it impossible to take the adapter away again.
    """
    for name in model.adapters:
        weight = model.weights[name]
        if isinstance(weight, NF4Tensor) or dense(weight).dtype != np.float32:
            kind = "NF4" if isinstance(weight, NF4Tensor) else str(dense(weight).dtype)
            raise AdapterError(
                f"merge_adapter: {name}: expected a float32 weight, got {kind}, which cannot be restored after a merge; use "
                "merge(dtype=...), which returns a new model, or load the base with dtype='float32'"
            )
    for name, adapter in model.adapters.items():
        weight = model.weights[name]
        merged = merged_weight(weight, adapter, sign)
        if isinstance(weight, Parameter):
            weight.data[...] = merged
        else:
            model.weights[name] = merged  # a new array: other models may share the old one
            model.decoder.set_weight(name, merged)
        model.stored_dtypes[name] = np.dtype(np.float32)
