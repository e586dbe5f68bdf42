"""What an adapter makes of a weight of its base: W + s B A, times the vectors of IA3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core import LoRALinear, Parameter
from ..adapters.bottleneck import BottleneckAdapter
from ..adapters.ia3 import ScalingVector, scaled_by
from ..errors import AdapterError
from ..weights.kinds import dense

if TYPE_CHECKING:
    from ..adapters import Adapter, LoadedAdapter

_BIAS = ".bias"


def merged_weight(weight: Any, adapter: LoadedAdapter, sign: float = 1.0) -> NDArray[np.float32]:
    """Return W + sign * s * B * A in float32 products, (out, in), in every precision; with DoRA g * (W + s B A)."""
    base = weight.data if isinstance(weight, Parameter) else weight
    r = adapter.A.shape[0]
    magnitude = None if adapter.magnitude is None else adapter.magnitude.data
    layer = LoRALinear(base, r, lora_alpha=adapter.scale * r, A=adapter.A.data, B=adapter.B.data, magnitude=magnitude)
    return layer.merge(sign=sign)


@dataclass(frozen=True)
class Folds:
    """What is folded into the weights: updates of LoRA and vectors of IA3, by decoder name."""

    layers: Mapping[str, LoadedAdapter] = field(default_factory=dict)
    vectors: Mapping[str, ScalingVector] = field(default_factory=dict)

    @classmethod
    def of(cls, adapter: Adapter, what: str) -> Folds:
        """Of an adapter, or of all parts of a stack.

        Parameters
        ----------
        what : str
            Who asks, for errors.

        Raises
        ------
        AdapterError
            It has bottlenecks or virtual tokens, which no weight can hold.
        """
        if adapter.n_virtual:
            raise AdapterError(
                f"{what}: expected an adapter that changes weights, got one with {adapter.n_virtual} virtual tokens (prompt "
                "or prefix tuning), which stand before every sequence and which no weight can hold; keep it as an adapter"
            )
        if any(isinstance(part, BottleneckAdapter) for part in adapter.parts()):
            raise AdapterError(
                f"{what}: expected an adapter that changes weights, got one of bottlenecks, between whose matrices lies an "
                "activation, so that no weight can hold them; keep it as an adapter"
            )
        return cls(adapter.layers, scaled_by(adapter))

    def __contains__(self, name: str) -> bool:
        return name in self.layers or self._vector(name) is not None

    def names(self, weights: Mapping[str, Any]) -> Iterator[str]:
        """Those of these weights that change, in their order."""
        return (name for name in weights if name in self)

    def is_exact_sum(self, name: str) -> bool:
        """Whether the weight comes out again by subtraction: an update alone, without DoRA."""
        return self._vector(name) is None and self.layers[name].magnitude is None

    def weight(self, name: str, weight: Any) -> NDArray[np.float32]:
        """Return what becomes of a weight that changes, in float32."""
        vector = self._vector(name)
        if name in self.layers:
            array = merged_weight(weight, self.layers[name])
        else:
            array = np.asarray(dense(weight.data if isinstance(weight, Parameter) else weight), np.float32)
        if vector is None:
            return array
        return array * (vector.values if vector.input or array.ndim == 1 else vector.values[:, None])

    def _vector(self, name: str) -> ScalingVector | None:
        """The vector of a matrix, or of the matrix that a bias belongs to: scaling an input leaves the bias alone."""
        vector = self.vectors.get(name.removesuffix(_BIAS))
        return None if vector is None or (name.endswith(_BIAS) and vector.input) else vector
