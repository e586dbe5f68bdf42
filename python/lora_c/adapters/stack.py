"""Several adapters in use at once: one of each kind, such as LoRA and a prefix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._core import Parameter
from ..configs import StackConfig
from ..errors import AdapterError
from ..families.labels import SCORE
from ..weights.parts import Parts
from .adapter import Adapter
from .data import AdapterArrays


class AdapterStack(Adapter):
    """Adapters of different kinds as one. Their parameters stay theirs; of several scores of a classifier the first counts."""

    def __init__(self, named: Mapping[str, Adapter]) -> None:
        _refuse_unstackable(named)
        parts = list(named.values())
        super().__init__(StackConfig(adapters={name: part.config for name, part in named.items()}))
        self._parts = parts
        self.names = list(named)
        self.tokens = next((part.tokens for part in parts if part.tokens is not None), None)
        for part in parts:
            self.layers |= part.layers
            self.saved = part.saved | self.saved
            self.base |= part.base
            self.start |= part.start

    @property
    def n_virtual(self) -> int:
        """Those of the one that has any."""
        return sum(part.n_virtual for part in self._parts)

    def parts(self) -> list[Adapter]:
        """The adapters that it consists of."""
        return self._parts

    def parameters(self) -> list[Parameter]:
        """Theirs, one adapter behind the other."""
        idle = [p for part in self._parts for name, p in part.saved.items() if p is not self.saved[name]]
        found = [parameter for part in self._parts for parameter in part.parameters()]
        return [parameter for parameter in found if not any(parameter is other for other in idle)]

    def replaced(self) -> dict[str, Any]:
        """Decoder name to the weight that takes the place of the model's own."""
        return {name: weight for part in reversed(self._parts) for name, weight in part.replaced().items()}

    def arrays(self) -> AdapterArrays:
        """No file holds several.

        Raises
        ------
        AdapterError
            Always.
        """
        raise AdapterError(f"adapter: expected one adapter, got a stack of {', '.join(self.names)}; take each by its name")

    def attach(self, decoder: Parts) -> None:
        """Put all of them into use."""
        for part in self._parts:
            part.attach(decoder)

    def detach(self, decoder: Parts) -> None:
        """Take all of them out of use."""
        for part in self._parts:
            part.detach(decoder)


def _refuse_unstackable(named: Mapping[str, Adapter]) -> None:
    kinds: dict[type, str] = {}
    owners: dict[str, str] = {}
    for name, adapter in named.items():
        if isinstance(adapter, AdapterStack):
            raise AdapterError(
                f"stack: expected single adapters, got {name!r}, which is a stack of {', '.join(adapter.names)}"
            )
        other = kinds.setdefault(type(adapter.config), name)
        if other != name:
            kind = type(adapter.config).__name__.removesuffix("Config")
            way_out = "; combine them with add_weighted_adapter" if kind == "Lora" else ""
            raise AdapterError(
                f"stack: expected adapters of different kinds, got two of {kind}: {other!r} and {name!r}{way_out}"
            )
        if adapter.n_virtual and owners.setdefault("virtual tokens", name) != name:
            raise AdapterError(
                f"stack: expected one adapter with virtual tokens, got {owners['virtual tokens']!r} and {name!r}; "
                "use one at a time"
            )
        for weight in adapter.replaced():
            if weight in adapter.saved and adapter.saved[weight].name.endswith(SCORE):
                continue  # every adapter of a classifier brings one
            if owners.setdefault(weight, name) != name:
                raise AdapterError(
                    f"stack: expected each weight to be trained by one adapter, got {weight} in {owners[weight]!r} and "
                    f"{name!r}; leave it out of one modules_to_save"
                )
