"""The adapters of a model, and which of them the decoder uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..errors import AdapterError
from ..weights.parts import Parts
from .adapter import Adapter

if TYPE_CHECKING:
    from .._core import DecoderAdapters


class AdapterSet:
    """The named adapters of a model, at most one of them in use. Swapping changes no weight of the base."""

    def __init__(self, decoder: Parts, weights: Mapping[str, Any], tied: bool) -> None:
        self._decoder, self._weights, self._tied = decoder, weights, tied
        self._named: dict[str, Adapter] = {}
        self._slots: dict[str, DecoderAdapters] = {}  # of those that were used beside others
        self._using = Lock()
        self.active_name: str | None = None

    @property
    def names(self) -> list[str]:
        """Names in the order of their arrival."""
        return list(self._named)

    @property
    def active(self) -> Adapter | None:
        """The adapter in use."""
        return self._named[self.active_name] if self.active_name is not None else None

    def __getitem__(self, name: str) -> Adapter:
        return self._named[name]

    def __contains__(self, name: str) -> bool:
        return name in self._named

    def add(self, name: str, adapter: Adapter) -> None:
        """Keep an adapter; it is in use after `activate`."""
        adapter.config = adapter.config.frozen_copy()
        self._named[name] = adapter

    def remove(self, name: str) -> None:
        """Forget an adapter, taking it out of use first, and the stacks that it is part of.

        Raises
        ------
        AdapterError
            A stack that it is part of is in use.
        """
        stacks = [
            other for other, adapter in self._named.items()
            if other != name and any(part is self._named[name] for part in adapter.parts())
        ]  # fmt: skip
        if self.active_name in stacks:
            raise AdapterError(
                f"adapter: expected one that is not in use beside others, got {name!r}, a part of {self.active_name!r}; use "
                "another one first: set_adapter(...)"
            )
        if name == self.active_name:
            self.activate(None)
        self._slots.pop(name, None)
        for gone in (*stacks, name):
            del self._named[gone]

    def activate(self, name: str | None) -> None:
        """Use this adapter instead of the present one; None: the base alone."""
        if self.active is not None:
            self._detach(self.active)
        self.active_name = name
        if self.active is not None:
            self._attach(self.active)

    def is_shareable(self, name: str | None) -> bool:
        """Whether a call of the decoder can use an adapter (None: the bare base) beside others."""
        return name is None or self._named[name].is_shareable

    @contextmanager
    def side_by_side(self, names: Sequence[str | None]) -> Iterator[list[DecoderAdapters | None] | None]:
        """What `Decoder.decode` is told of the adapters of its sequences, while a block runs.

        None where all have the adapter in use, or one that is not shareable, which is in use meanwhile.
        """
        if not self._using.acquire(blocking=False):
            raise RuntimeError("lora_c.Model: in use by another thread; give each thread its own or take a lock")
        try:
            with self._side_by_side(names) as adapters:
                yield adapters
        finally:
            self._using.release()

    @contextmanager
    def _side_by_side(self, names: Sequence[str | None]) -> Iterator[list[DecoderAdapters | None] | None]:
        active = self.active_name
        if all(name == active for name in names):
            yield None
            return
        shared = all(map(self.is_shareable, names))
        meanwhile = names[0] if not shared else active if self.is_shareable(active) else None
        try:
            if meanwhile != active:
                self.activate(meanwhile)
            yield [None if name is None else self._slots_of(name) for name in names] if shared else None
        finally:
            if meanwhile != active:
                self.activate(active)

    def _slots_of(self, name: str) -> DecoderAdapters:
        if name not in self._slots:
            slots = self._decoder.new_adapters()
            for matrix, layer in self._named[name].layers.items():
                self._decoder.fill_slots(slots, matrix, layer.A, layer.B, scale=layer.scale)
            self._slots[name] = slots  # when it is whole
        return self._slots[name]

    def detach_updates(self) -> None:
        """Take the updates out of use and leave everything else: after they were folded into the weights."""
        if self.active is not None:
            self.active.detach(self._decoder)

    def attach_updates(self) -> None:
        """Put the updates of the active adapter back into use."""
        if self.active is not None:
            self.active.attach(self._decoder)

    def _attach(self, adapter: Adapter) -> None:
        replaced = adapter.replaced()
        if self._tied and "embed_tokens" in replaced and "lm_head" not in replaced:
            # As in PEFT: trained rows count for a tied head, too; an embedding that is trained whole leaves it as it is.
            replaced["lm_head"] = adapter.tokens.embedding if adapter.tokens else self._weights["embed_tokens"]
        for name, weight in replaced.items():
            self._decoder.set_weight(name, weight)
        if adapter.tokens is not None and adapter.tokens.rows.requires_grad:
            self._decoder.set_token_rows(adapter.tokens.ids, adapter.tokens.rows)
        adapter.attach(self._decoder)

    def _detach(self, adapter: Adapter) -> None:
        adapter.detach(self._decoder)
        if adapter.tokens is not None:
            self._decoder.set_token_rows(None, None)
        replaced = set(adapter.replaced())
        if self._tied and replaced & {"embed_tokens", "lm_head"}:
            self._decoder.set_weight("lm_head", self._weights["embed_tokens"])
        for name in replaced & set(self._weights):
            self._decoder.set_weight(name, self._weights[name])
