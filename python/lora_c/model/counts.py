"""What a model consists of, counted. Methods of `Model`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import GGMLTensor, NF4Tensor, Parameter

if TYPE_CHECKING:
    from .model import Model


def is_quantized(model: Model) -> bool:
    """Whether any weight is in NF4 or another 4-bit type of its layout."""
    return any(isinstance(weight, NF4Tensor) for weight in model.weights.values())


def context_length(model: Model) -> int:
    """The most tokens that prompt and answer may have together; virtual ones of the adapter in use take of them."""
    return context_with(model, model.active_adapter)


def context_with(model: Model, adapter: str | None) -> int:
    """Return `context_length` with another adapter in use; None: the base alone.

    Parameters
    ----------
    adapter : str or None
        One of `adapter_names`.
    """
    virtual = 0 if adapter is None else model.adapter_set[adapter].n_virtual
    return int(model.architecture.decoder_kwargs["max_position_embeddings"]) - virtual


def num_parameters(model: Model, only_trainable: bool = False) -> int:
    """Return the number of weights, the adapter's included; tied embeddings count once.

    Parameters
    ----------
    only_trainable : bool
        Count only what training changes.
    """
    if only_trainable:
        return sum(parameter.size for parameter in model.trainable_parameters())
    base = sum(int(np.prod(weight.shape)) for weight in model.weights.values())
    active = model.adapter_set.active
    return base + (sum(parameter.size for parameter in active.parameters()) if active else 0)


def dense_bytes(model: Model) -> int:
    """Return the bytes of the weights that are plain arrays or mapped blocks: neither quantized here nor parameters; and of
    the arrays that the decoder reads in the place of quantized tensors."""
    own = model.adapter_set.active.base if model.adapter_set.active else {}
    plain = sum(w.nbytes for w in (*model.weights.values(), *own.values()) if _is_uncounted(w))
    return plain + model.parts.dequantized_bytes


def _is_uncounted(weight: Any) -> bool:
    """Whether the memory of a weight is not in the report of the library."""
    return isinstance(weight, np.ndarray) or (isinstance(weight, GGMLTensor) and not weight.owns_blocks)


def trainable_parameters(model: Model) -> list[Parameter]:
    """Return the parameters that training changes, in the order of the forward pass."""
    active = model.adapter_set.active
    idle = active.replaced() if active else {}
    found = [weight for name, weight in model.weights.items() if isinstance(weight, Parameter) and name not in idle]
    found += active.parameters() if active else []
    return [parameter for parameter in found if parameter.requires_grad]
