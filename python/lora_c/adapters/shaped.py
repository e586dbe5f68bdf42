"""What a new adapter consists of, without its values: arrays that have a shape and no memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..configs import AdapterConfig, BottleneckConfig, IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig
from ..errors import AdapterError
from ..families.architectures import Architecture
from ..weights.forms import MetaWeights
from .data import F32, AdapterArrays, MatrixArrays, TokenRows
from .initialize import changes_base
from .peft_tensors import tensor_shapes
from .targets import find_saved, find_targets, find_token_ids
from .trained_weights import refuse_trained_targets
from .virtual_tokens import ENCODER
from .virtual_tokens_config import TENSOR, check_room, encoder_widths, prefix_width

if TYPE_CHECKING:
    from ..model.base_weights import BaseWeights

_ZERO = np.float32(0)


def empty(shape: tuple[int, ...]) -> F32:
    """An array of one number that is seen everywhere."""
    return np.broadcast_to(_ZERO, shape)


def shapes_of(config: AdapterConfig, base_weights: BaseWeights) -> tuple[AdapterArrays, F32 | None]:
    """Return what the file of a new adapter would hold, and the embedding where rows of it are trained.

    Parameters
    ----------
    config : AdapterConfig
        Of one of the kinds, but for prefix tuning.
    base_weights : BaseWeights
        Of the model that it is for.

    Raises
    ------
    AdapterError
        The configuration matches no module, or has more virtual tokens than the model has room for.
    """
    if isinstance(config, LoraConfig):
        return _shapes_of_lora(config, base_weights)
    assert isinstance(config, (IA3Config, BottleneckConfig, PromptTuningConfig))
    architecture = base_weights.architecture
    if isinstance(config, PromptTuningConfig):
        check_room(config, architecture)
    tensors = {name: empty(shape) for name, shape in tensor_shapes(config, architecture).items()}
    specs = [] if isinstance(config, PromptTuningConfig) else find_saved(config, architecture, ())
    return AdapterArrays(config, saved={spec.name: empty(spec.shape) for spec in specs}, tensors=tensors), None


def _shapes_of_lora(config: LoraConfig, base_weights: BaseWeights) -> tuple[AdapterArrays, F32 | None]:
    architecture = base_weights.architecture
    targets = find_targets(config, architecture)
    refuse_trained_targets([target.spec.name for target in targets], base_weights.weights.values)
    if config.lora_dropout and any(target.spec.kind == "head" for target in targets):
        raise AdapterError(f"lora_dropout: expected 0 with an adapter on the head, got {config.lora_dropout}")
    matrices = {}
    for target in targets:
        rows, cols = target.spec.shape
        magnitude = empty((rows,)) if config.use_dora else None
        matrices[target.spec.name] = MatrixArrays(empty((target.r, cols)), empty((rows, target.r)), target.scale, magnitude)
    saved = {spec.name: empty(spec.shape) for spec in find_saved(config, architecture, targets)}
    ids = find_token_ids(config, architecture)
    embedding = next(empty(spec.shape) for spec in architecture.weights() if spec.kind == "embedding") if ids else None
    tokens = TokenRows(ids, empty((len(ids), embedding.shape[1]))) if ids and embedding is not None else None
    return AdapterArrays(config, matrices, saved, tokens, _own_base(config, base_weights, matrices)), embedding


def _own_base(
    config: LoraConfig, base_weights: BaseWeights, matrices: Mapping[str, MatrixArrays]
) -> dict[str, Callable[[], Any]]:
    """Of PiSSA, OLoRA and LoftQ: a base of the adapter's own beside the model's, in the same form."""
    weights = base_weights.weights
    if not changes_base(config) or not isinstance(weights, MetaWeights):
        return {}
    return {
        name: partial(weights.forms[name].weight, (m.B.shape[0], m.A.shape[1]), weights.device) for name, m in matrices.items()
    }


def shapes_of_prefix(config: PrefixTuningConfig, architecture: Architecture) -> dict[str, F32]:
    """Return the prefix, or what its encoder consists of."""
    check_room(config, architecture)
    n, width = config.num_virtual_tokens, prefix_width(architecture)
    if not config.prefix_projection:
        return {TENSOR: empty((n, width))}
    inner, hidden = encoder_widths(config, architecture)
    shapes = (n, inner), (hidden, inner), (hidden,), (width, hidden), (width,)
    return {name: empty(shape) for name, shape in zip(ENCODER, shapes, strict=True)}
