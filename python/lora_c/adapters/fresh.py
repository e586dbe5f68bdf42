"""A new adapter for a model, from its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import LoRALinear
from ..configs import LoraConfig
from ..errors import AdapterError
from .data import F32, AdapterArrays, MatrixArrays, TokenRows
from .initialize import Start, changes_base, init_adapter, init_from_base
from .loaded import Adapter, load_arrays
from .targets import AdapterTarget, find_saved, find_targets, find_token_ids
from .trained_weights import refuse_trained_targets

if TYPE_CHECKING:
    from ..model.model import Model


def fresh_adapter(model: Model, config: LoraConfig) -> Adapter:
    """Return an adapter that leaves the output of the model as it is (up to rounding, where the base is split).

    Raises
    ------
    AdapterError
        The configuration matches no module.
    """
    architecture = model.architecture
    targets = find_targets(config, architecture)
    refuse_trained_targets([target.spec.name for target in targets], model.weights)
    if config.lora_dropout and any(target.spec.kind == "head" for target in targets):
        raise AdapterError(
            f"lora_dropout: expected 0 with an adapter on the head, got {config.lora_dropout}; set it to 0 or leave it out"
        )
    saved = {spec.name: _whole(model, spec.name) for spec in find_saved(config, architecture, targets)}
    ids = find_token_ids(config, architecture)
    embedding = _whole(model, "embed_tokens") if ids else None
    rows = TokenRows(ids, embedding[ids]) if ids and embedding is not None else None
    base: dict[str, Any] = {}
    start: dict[str, tuple[F32, F32]] = {}
    matrices = {}
    for target in targets:
        name = target.spec.name
        weight = model.weights[name if name in model.weights else "embed_tokens"]  # a tied head
        if changes_base(config):
            begun = _start(model, target, config)
            base[name] = weight = _residual(model, name, begun)
            start[name] = a, b = begun.A, begun.B
        else:
            a, b = init_adapter(target, config)
        matrices[name] = MatrixArrays(a, b, target.scale, row_lengths(weight, a, b, target.scale) if config.use_dora else None)
    adapter = load_arrays(AdapterArrays(config, matrices, saved, rows), architecture, embedding, True, model.device)
    adapter.base, adapter.start = base, start
    return adapter


def row_lengths(weight: Any, a: F32, b: F32, scale: float) -> F32:
    """The row lengths of W + s B A, from which DoRA starts."""
    layer = LoRALinear(weight, len(a), lora_alpha=scale * len(a), A=a, B=b, use_dora=True)
    assert layer.magnitude is not None
    return layer.magnitude.data.copy()


def _whole(model: Model, name: str) -> F32:
    """A float32 copy of a weight; a tied head is the embedding."""
    return np.array(model.dense_weight(name if name in model.weights else "embed_tokens"), np.float32)


def _start(model: Model, target: AdapterTarget, config: LoraConfig) -> Start:
    weight = model.full_precision(target.spec.name)
    return init_from_base(target, config, np.asarray(weight, np.float32), model.quantize_weight, lambda w: w.dequantize())


def _residual(model: Model, name: str, begun: Start) -> Any:
    """The base that belongs to the start, stored as the model's own weight is."""
    if begun.quantized is not None:
        return begun.quantized
    assert begun.residual is not None
    weight = model.weights[name]
    if isinstance(weight, np.ndarray):
        return np.ascontiguousarray(begun.residual, weight.dtype)
    return model.quantize_weight(begun.residual)
