"""Adapters on a model: their parameters, and which of them the decoder uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

from .._core import Parameter
from ..configs import AdapterConfig
from ..families.architectures import Architecture, WeightSpec
from ..weights.parameter_values import set_rows, set_values
from ..weights.parts import Parts
from .data import F32, AdapterArrays, MatrixArrays, TokenRows, specs_by_name
from .peft_format import PREFIX

if TYPE_CHECKING:
    from .._core import DecoderAdapters


@dataclass(frozen=True)
class LoadedAdapter:
    """The update of one projection: A (r, in), B (out, r), their scale, and DoRA's magnitude (out,)."""

    module: str
    A: Parameter
    B: Parameter
    scale: float
    magnitude: Parameter | None = None

    def parameters(self) -> list[Parameter]:
        """A, B and the magnitude."""
        return [p for p in (self.A, self.B, self.magnitude) if p is not None]

    def arrays(self) -> MatrixArrays:
        """The present values."""
        magnitude = None if self.magnitude is None else self.magnitude.data
        return MatrixArrays(self.A.data, self.B.data, self.scale, magnitude)


@dataclass(frozen=True)
class TrainedTokens:
    """Rows of the embedding, and the copy of the embedding that holds them while the adapter is in use."""

    ids: list[int]
    rows: Parameter
    embedding: Parameter

    def whole(self) -> F32:
        """The embedding with the rows as they are now."""
        return set_rows(self.embedding, self.ids, self.rows.data)


@dataclass
class Adapter:
    """A named adapter. `base` holds weights that take the place of the model's own while it is in use (see `initialize`),
    `start` the (A, B) that were taken out of those."""

    config: AdapterConfig
    layers: dict[str, LoadedAdapter]
    saved: dict[str, Parameter] = field(default_factory=dict)
    tokens: TrainedTokens | None = None
    base: dict[str, Any] = field(default_factory=dict)
    start: dict[str, tuple[F32, F32]] = field(default_factory=dict)

    def parameters(self) -> list[Parameter]:
        """Every parameter, in the order of the forward pass within each kind."""
        found = [p for layer in self.layers.values() for p in layer.parameters()]
        found += self.saved.values()
        return found + ([self.tokens.rows] if self.tokens else [])

    def replaced(self) -> dict[str, Any]:
        """Decoder name to the weight that takes the place of the model's own."""
        return {**self.base, **self.saved, **({"embed_tokens": self.tokens.embedding} if self.tokens else {})}

    def arrays(self) -> AdapterArrays:
        """The present values, as a file would hold them."""
        saved = {name: parameter.data for name, parameter in self.saved.items()}
        rows = TokenRows(self.tokens.ids, self.tokens.rows.data) if self.tokens else None
        return AdapterArrays(self.config, {name: layer.arrays() for name, layer in self.layers.items()}, saved, rows)


def load_arrays(
    arrays: AdapterArrays, architecture: Architecture, embedding: F32 | None, trainable: bool, device: str
) -> Adapter:
    """Make parameters of an adapter's arrays.

    Parameters
    ----------
    embedding : array or None
        The base's embedding, where the adapter trains rows of it.
    device : str
        Where the parameters lie.
    """
    specs = specs_by_name(architecture)
    rows = arrays.tokens.rows if arrays.tokens is not None and embedding is not None else None
    made = _in_one_block(_named_arrays(arrays, rows, specs), trainable, device)
    layers = {}
    for name, matrix in arrays.matrices.items():
        prefix = f"{PREFIX}{specs[name].module}."
        magnitude = made.get(f"{prefix}lora_magnitude_vector")
        layers[name] = LoadedAdapter(
            specs[name].module, made[f"{prefix}lora_A.weight"], made[f"{prefix}lora_B.weight"], matrix.scale, magnitude
        )
    saved = {name: made[PREFIX + specs[name].file_name] for name in arrays.saved}
    tokens = None
    if arrays.tokens is not None and embedding is not None:
        whole = Parameter(embedding, name="embed_tokens", requires_grad=trainable, device=device)
        tokens = TrainedTokens(arrays.tokens.ids, made[_key_of_rows(specs)], whole)
        tokens.whole()
    base = {name: read() for name, read in arrays.residual_base.items()}
    return Adapter(arrays.config, layers, saved, tokens, base)


def _key_of_rows(specs: Mapping[str, WeightSpec]) -> str:
    return f"{PREFIX}{specs['embed_tokens'].module}.trainable_tokens_delta"


def _named_arrays(arrays: AdapterArrays, rows: F32 | None, specs: Mapping[str, WeightSpec]) -> dict[str, F32]:
    """The arrays of an adapter by the names of a file, in the order of `Adapter.parameters`."""
    named: dict[str, F32] = {}
    for name, matrix in arrays.matrices.items():
        parts = {"lora_A.weight": matrix.A, "lora_B.weight": matrix.B, "lora_magnitude_vector": matrix.magnitude}
        named |= {f"{PREFIX}{specs[name].module}.{part}": array for part, array in parts.items() if array is not None}
    named |= {PREFIX + specs[name].file_name: array for name, array in arrays.saved.items()}
    return named | ({_key_of_rows(specs): rows} if rows is not None else {})


def _in_one_block(named: Mapping[str, F32], trainable: bool, device: str) -> dict[str, Parameter]:
    """A Parameter of each array, all in one block of memory."""
    if not named:
        return {}
    shapes = [array.shape for array in named.values()]
    made = Parameter.block(shapes, names=list(named), requires_grad=trainable, device=device)
    for parameter, array in zip(made, named.values(), strict=True):
        set_values(parameter, array)
    return dict(zip(named, made, strict=True))


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
        """Forget an adapter, taking it out of use first."""
        if name == self.active_name:
            self.activate(None)
        self._slots.pop(name, None)
        del self._named[name]

    def activate(self, name: str | None) -> None:
        """Use this adapter instead of the present one; None: the base alone."""
        if self.active is not None:
            self._detach(self.active)
        self.active_name = name
        if self.active is not None:
            self._attach(self.active)

    def is_shareable(self, name: str | None) -> bool:
        """Whether a call of the decoder can use an adapter (None: the bare base) beside others: low-rank updates of the
        layers' matrices can be, what replaces or scales the base's weights or changes embedding and head cannot."""
        return name is None or not _changes_base(self._named[name])

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

    def detach_matrices(self) -> None:
        """Take the updates out of use and leave everything else: after they were folded into the weights."""
        for layer in self.active.layers if self.active else ():
            self._decoder.remove_adapter(layer)

    def attach_matrices(self) -> None:
        """Put the updates of the active adapter back into use."""
        adapter = self.active
        if adapter is None:
            return
        for name, layer in adapter.layers.items():
            dropout = 0.0 if name == "embed_tokens" else adapter.config.lora_dropout  # PEFT's embeddings have none
            self._decoder.set_adapter(
                name, layer.A, layer.B, scale=layer.scale, dropout=dropout, seed=adapter.config.seed, magnitude=layer.magnitude
            )

    def _attach(self, adapter: Adapter) -> None:
        replaced = adapter.replaced()
        if self._tied and "embed_tokens" in replaced and "lm_head" not in replaced:
            # As in PEFT: trained rows count for a tied head, too; an embedding that is trained whole leaves it as it is.
            replaced["lm_head"] = adapter.tokens.embedding if adapter.tokens else self._weights["embed_tokens"]
        for name, weight in replaced.items():
            self._decoder.set_weight(name, weight)
        if adapter.tokens is not None and adapter.tokens.rows.requires_grad:
            self._decoder.set_token_rows(adapter.tokens.ids, adapter.tokens.rows)
        self.attach_matrices()

    def _detach(self, adapter: Adapter) -> None:
        self.detach_matrices()
        if adapter.tokens is not None:
            self._decoder.set_token_rows(None, None)
        replaced = set(adapter.replaced())
        if self._tied and replaced & {"embed_tokens", "lm_head"}:
            self._decoder.set_weight("lm_head", self._weights["embed_tokens"])
        for name in replaced & set(self._weights):
            self._decoder.set_weight(name, self._weights[name])


def _changes_base(adapter: Adapter) -> bool:
    """Whether more than low-rank updates of the layers' matrices belong to it."""
    layers = adapter.layers
    return (
        bool(adapter.replaced())
        or {"embed_tokens", "lm_head"} & layers.keys() != set()
        or any(layer.magnitude is not None for layer in layers.values())
    )
