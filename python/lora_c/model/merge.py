"""Folding an adapter into its base: W + s B A, times the vectors of IA3. After it, inference costs what the base costs.

Source: LoRA, arXiv:2106.09685, section 4.1 ("no additional inference latency").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .._core import GGMLTensor
from ..checkpoints.safetensors_file import find_non_finite
from ..configs.quantization import FOUR_BIT, Q8_0_BLOCK
from ..errors import AdapterError, ConfigError
from ..families.architectures import WeightSpec, architecture_of
from ..weights.kinds import dense, format_of
from .folded import Folds

if TYPE_CHECKING:
    from .model import Model

MergeDtype = Literal["float32", "bfloat16", "float16", "nf4", "fp4", "fp4_e2m1", "int4", "q8_0"]
_DENSE: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


def merge_model(model: Model, dtype: MergeDtype = "float32") -> Model:
    """Return a new model with the adapter folded in; the given model keeps its own.

    Parameters
    ----------
    dtype : "float32", "bfloat16", "float16", "nf4", "fp4", "fp4_e2m1", "int4" or "q8_0"
        Type of the weight matrices of the result. The 4-bit types quantize W + s B A again, with the block size of the base;
        "q8_0" makes the blocks of GGUF files of all matrices (float16 where rows are no multiple of 32), for
        `gguf.write_model`. Matrices without an adapter keep codes of that kind. Rounding can change outputs:
        `merge_with_report` measures it. float16 values are held in memory as float32 and saved as float16.

    Raises
    ------
    AdapterError
        There is no adapter, or one that no weight can hold; or a merged weight is not finite in that type (it is named).
    """
    if dtype not in get_args(MergeDtype):
        raise ConfigError(f"dtype: expected one of {', '.join(get_args(MergeDtype))}, got {dtype!r}")
    if model.adapter is None:
        raise AdapterError("merge: expected a model with an adapter, got none; call add_adapter or load_adapter first")
    folds = Folds() if model.is_merged else Folds.of(model.adapter, "merge")
    replaced = whole_tensors(model)
    config = dict(model.config)
    if model.architecture.tied and ("lm_head" in replaced or {"lm_head", "embed_tokens"} & set(folds.layers)):
        config["tie_word_embeddings"] = False
        replaced.setdefault("lm_head", model.weights["embed_tokens"])
    weights: dict[str, Any] = {}
    stored, records = dict(model.stored_dtypes), {}
    for spec in architecture_of(config).weights():
        name = spec.name
        weight = replaced.get(name, model.weights.get(name))
        stored.setdefault(name, stored["embed_tokens"])  # a head that is untied here
        if spec.kind == "vector":
            array = folds.weight(name, weight) if name in folds else np.array(dense(weight), np.float32)
            weights[name] = _finite(array, spec.file_name)
        elif spec.kind == "projection" or dtype == "q8_0" or format_of(weight) == dtype.upper():
            weights[name] = _merge_one(model, spec, weight, folds, dtype)
            if weights[name] is weight and name in model.quant_records and name not in replaced:
                records[name] = model.quant_records[name]
        else:
            array = dense(weight) if name not in folds else _finite(folds.weight(name, weight), spec.module)
            weights[name] = _cast(array, stored[name].name if dtype in FOUR_BIT else dtype, spec.module)
        if dtype in _DENSE:
            stored[name] = _DENSE[dtype]
    return model.with_weights(weights, stored, records, config)


def whole_tensors(model: Model) -> dict[str, Any]:
    """Decoder name to what the adapter in use puts in the place of the base's weight.

    It names `lm_head` exactly where the head is no longer the embedding: it was trained whole, or the embedding was.
    """
    adapter = model.adapter
    if adapter is None:
        return {}
    replaced = adapter.replaced()
    if adapter.tokens is not None:
        replaced["embed_tokens"] = adapter.tokens.whole()
    elif model.architecture.tied and "embed_tokens" in replaced:
        replaced.setdefault("lm_head", model.weights["embed_tokens"])
    return replaced


def _merge_one(model: Model, spec: WeightSpec, weight: Any, folds: Folds, dtype: MergeDtype) -> Any:
    module = spec.module
    if spec.name not in folds:
        if format_of(weight) == dtype.upper():  # blocks of that kind already
            return weight
        array = dense(weight)
    else:
        array = _finite(folds.weight(spec.name, weight), module)
    if dtype in FOUR_BIT:
        return model.quantization.in_4bit(dtype).quantize(array)
    if dtype == "q8_0":
        return _q8_0(array, module)
    return _cast(array, dtype, module)


def _q8_0(array: NDArray[Any], module: str) -> Any:
    """Blocks of 32 weights of a row; float16 where the rows are no multiple of that, as in a GGUF file."""
    if array.shape[-1] % Q8_0_BLOCK:
        return _cast(array, "float16", module)
    try:
        return GGMLTensor.quantize(np.ascontiguousarray(_finite(array, module)))
    except ValueError as error:  # a block whose scale is beyond float16
        raise AdapterError(f"merge: {module}: {error}; use bfloat16 or float32") from None


def _cast(array: NDArray[Any], dtype: str, module: str) -> NDArray[Any]:
    """Round to the type; what the decoder computes with is float32 or bfloat16."""
    if dtype != "float16":
        return _finite(np.array(array, _DENSE[dtype]), module)
    with np.errstate(over="ignore"):  # said below, with the name
        return np.array(_finite(np.asarray(array, np.float16), module), np.float32)


def _finite(array: NDArray[Any], module: str) -> NDArray[Any]:
    bad = find_non_finite(array)
    if bad:
        way_out = "use bfloat16 or float32" if array.dtype == np.float16 else "check the adapter"
        raise AdapterError(f"merge: {module}: expected finite numbers, got {bad[1]} at index {bad[0]}; {way_out}")
    return array
