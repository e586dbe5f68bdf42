"""Methods that users of PEFT know by these names. They are methods of `Model`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from .model import Model


@contextmanager
def disable_adapter(model: Model) -> Iterator[None]:
    """Use the base alone inside a with statement; the adapter in use before is in use again after it.

    Raises
    ------
    AdapterError
        No adapter is in use, or it is folded into the weights.
    """
    name = model.active_adapter
    if name is None:
        raise AdapterError("disable_adapter: expected a model with an adapter in use, got none; call set_adapter first")
    if model.is_merged:
        raise AdapterError(
            "disable_adapter: expected a model that is not merged, got a merged one; call unmerge_adapter() first"
        )
    model.set_adapter(None)
    try:
        yield
    finally:
        if name in model.adapter_names and model.active_adapter is None:
            model.set_adapter(name)


def get_nb_trainable_parameters(model: Model) -> tuple[int, int]:
    """Return how many parameters training changes, and how many there are, the adapter's included."""
    return model.num_parameters(only_trainable=True), model.num_parameters()


def print_trainable_parameters(model: Model) -> None:
    """Print how many parameters training changes, and their share of all."""
    trainable, total = get_nb_trainable_parameters(model)
    print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}")


def merge_and_unload(model: Model, safe_merge: bool = False, adapter_names: Sequence[str] | None = None) -> Model:
    """Return a model whose weights are W + s B A, in float32, without an adapter; this one is not changed. See `merge`.

    Parameters
    ----------
    safe_merge : bool
        Taken for PEFT's sake: a result with numbers that are not finite is refused either way.
    adapter_names : list of str, optional
        The adapter to merge; by default the one in use. Several are combined with `add_weighted_adapter` before.

    Raises
    ------
    AdapterError
        There is no adapter of that name, or a merged weight is not finite.
    """
    if adapter_names is not None and (isinstance(adapter_names, str) or len(adapter_names) != 1):
        raise ConfigError(
            f"adapter_names: expected a list of one name, got {adapter_names!r}; combine several with add_weighted_adapter"
        )
    before = model.active_adapter
    if adapter_names is not None:
        model.set_adapter(adapter_names[0])
    try:
        return model.merge()
    finally:
        if model.active_adapter != before:
            model.set_adapter(before)
