"""A new LoRA adapter for a model, from its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import LoRALinear
from ..configs import LoraConfig
from ..errors import AdapterError
from ..weights.kinds import dense
from .adapter import Adapter
from .data import F32, AdapterArrays, MatrixArrays, TokenRows
from .initialize import Start, changes_base, init_adapter, init_from_base
from .loaded import load_arrays
from .targets import AdapterTarget, find_targets, find_token_ids
from .trained_weights import refuse_trained_targets, whole_copies, whole_copy

if TYPE_CHECKING:
    from ..model.base_weights import BaseWeights


def fresh_lora(base_weights: BaseWeights, config: LoraConfig, device: str) -> Adapter:
    """Return a LoRA adapter that leaves the output of the model as it is (up to rounding, where the base is split).

    Parameters
    ----------
    base_weights : BaseWeights
        Of the model that it is for.
    config : LoraConfig
        What is adapted, and how it begins.
    device : str
        Where its parameters lie.

    Raises
    ------
    AdapterError
        The configuration matches no module.
    """
    architecture = base_weights.architecture
    targets = find_targets(config, architecture)
    refuse_trained_targets([target.spec.name for target in targets], base_weights.weights.values)
    if config.lora_dropout and any(target.spec.kind == "head" for target in targets):
        raise AdapterError(
            f"lora_dropout: expected 0 with an adapter on the head, got {config.lora_dropout}; set it to 0 or leave it out"
        )
    saved = whole_copies(base_weights, config, targets)
    ids = find_token_ids(config, architecture)
    embedding = whole_copy(base_weights, "embed_tokens") if ids else None
    rows = TokenRows(ids, embedding[ids]) if ids and embedding is not None else None
    base: dict[str, Any] = {}
    start: dict[str, tuple[F32, F32]] = {}
    matrices = {}
    for target in targets:
        name = target.spec.name
        weight = base_weights.of(name)
        if changes_base(config):
            begun = _start(base_weights, target, config)
            base[name] = weight = _residual(base_weights, name, begun)
            start[name] = a, b = begun.A, begun.B
        else:
            a, b = init_adapter(target, config)
        matrices[name] = MatrixArrays(a, b, target.scale, row_lengths(weight, a, b, target.scale) if config.use_dora else None)
    adapter = load_arrays(AdapterArrays(config, matrices, saved, rows), architecture, embedding, True, device)
    adapter.base, adapter.start = base, start
    return adapter


def row_lengths(weight: Any, a: F32, b: F32, scale: float) -> F32:
    """The row lengths of W + s B A, from which DoRA starts."""
    layer = LoRALinear(weight, len(a), lora_alpha=scale * len(a), A=a, B=b, use_dora=True)
    assert layer.magnitude is not None
    return layer.magnitude.data.copy()


def _start(base_weights: BaseWeights, target: AdapterTarget, config: LoraConfig) -> Start:
    weight = np.asarray(base_weights.full_precision(target.spec.name), np.float32)
    return init_from_base(target, config, weight, base_weights.quantize, dense)


def _residual(base_weights: BaseWeights, name: str, begun: Start) -> Any:
    """The base that belongs to the start, stored as the model's own weight is."""
    weight = base_weights.of(name)
    if begun.quantized is not None:
        fits = not isinstance(begun.quantized, np.ndarray)
        return begun.quantized if fits else np.ascontiguousarray(begun.quantized, dense(weight).dtype)
    assert begun.residual is not None
    if isinstance(weight, np.ndarray):
        return np.ascontiguousarray(begun.residual, weight.dtype)
    return base_weights.quantize(begun.residual)
