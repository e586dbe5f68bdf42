"""An adapter folded into the model's own weights, and taken out again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import GGMLTensor, NF4Tensor
from ..errors import AdapterError
from ..weights.kinds import dense, format_of
from .folded import Folds, merged_weight

if TYPE_CHECKING:
    from ..adapters import Adapter
    from .model import Model


class InPlaceMerge:
    """What an adapter makes of a model's own weights in their place, from `begin` until `undo`."""

    def __init__(self, folds: Folds) -> None:
        self._folds = folds
        self._before: dict[str, Any] = {}  # weights with DoRA or IA3, whose merge cannot be calculated back

    @classmethod
    def begin(cls, model: Model, adapter: Adapter) -> InPlaceMerge:
        """Fold an adapter into the weights of a model.

        Raises
        ------
        AdapterError
            A weight is not float32: rounding would make it impossible to take the adapter away again. Or the adapter
            replaces whole tensors, which cannot be folded.
        """
        folds = Folds.of(adapter, "merge_adapter")
        _check_can_fold(model, adapter, folds)
        merge = cls(folds)
        for name in list(folds.names(model.weights)):
            weight = model.weights[name]
            if not folds.is_exact_sum(name):
                merge._before[name] = np.array(dense(weight))
            model.replace_weight(name, folds.weight(name, weight))
        return merge

    def undo(self, model: Model) -> None:
        """Take the adapter out: each weight is restored up to two roundings of float32 sums, with DoRA and IA3 exactly."""
        for name in list(self._folds.names(model.weights)):
            kept = self._before.pop(name, None)
            model.replace_weight(
                name, merged_weight(model.weights[name], self._folds.layers[name], -1.0) if kept is None else kept
            )


def _check_can_fold(model: Model, adapter: Adapter, folds: Folds) -> None:
    if adapter.replaced():
        name = next(iter(adapter.replaced()))
        raise AdapterError(
            f"merge_adapter: expected an adapter of low-rank updates only, got one that replaces {name}; use "
            "merge(dtype=...), which returns a new model"
        )
    for name in dict.fromkeys([*folds.layers, *folds.names(model.weights)]):
        if model.architecture.tied and name in ("embed_tokens", "lm_head"):
            raise AdapterError(
                f"merge_adapter: {name}: expected a weight that nothing else uses, got one that embedding and head share; use "
                "merge(dtype=...), which returns a new model"
            )
        weight = model.weights[name]
        if isinstance(weight, (NF4Tensor, GGMLTensor)) or dense(weight).dtype != np.float32:
            raise AdapterError(
                f"merge_adapter: {name}: expected a float32 weight, got {format_of(weight)}, which cannot be restored after a "
                "merge; use merge(dtype=...), which returns a new model, or load the base with dtype='float32'"
            )
