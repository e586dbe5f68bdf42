"""A step that was kept because its numbers were not fit for an update, computed again: are the bits the same, and which
operation made the first value that is not finite."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core import GradientTree
from ..adapters.kinds import config_of, frozen_adapter
from ..checkpoints.safetensors_file import find_non_finite
from ..errors import AdapterError, CheckpointError, ConfigError, LoraCError
from ..files.paths import expand
from ..notices import tell
from ..runs.bad_steps import BadStep, gradients_digest, kept_parameters, kernels, read_bad_step
from ..runs.digests import model_digest
from ..weights.parameter_values import set_values

if TYPE_CHECKING:
    from ..data.batching import PackedBatch
    from ..model.model import Model

_MOST_NORMS = 5
_PIECE = 1 << 20


@dataclass(frozen=True)
class FirstNonFinite:
    """The first value that was not finite.

    Attributes
    ----------
    where : str
        In words: the weight and the pass, or the parameter that was not finite before.
    operation, result : str
        The operation of the C library and which of its results; empty for a parameter.
    batch, row, column : int
        The micro-batch, and where in that result; of values for tokens the row is the token, virtual ones counted.
    value : float
        What it was.
    token : str or None
        The text of the token, where the row is one.
    """

    where: str
    operation: str
    result: str
    batch: int
    row: int
    column: int
    value: float
    token: str | None


@dataclass(frozen=True)
class Replay:
    """What `replay` found.

    Attributes
    ----------
    step : int
        Of the run.
    problem : str
        Why the run kept it.
    loss : float
        Per token with loss, of all its batches.
    same_loss, same_gradients : bool
        Whether their bits are those of the run.
    first_nonfinite : FirstNonFinite or None
        None where all values were finite.
    gradient_norms : dict
        The parameters with the largest gradients, and their norms.
    """

    step: int
    problem: str
    loss: float
    same_loss: bool
    same_gradients: bool
    first_nonfinite: FirstNonFinite | None
    gradient_norms: dict[str, float]


def replay(folder: str | os.PathLike[str], model: Model | str | os.PathLike[str] | None = None) -> Replay:
    """Compute a step that a run has kept again, and look at every value.

    Parameters
    ----------
    folder : path
        `bad-step-N` of the run.
    model : Model or path, optional
        The base that the run was made with, or where it lies now; by default where it lay then. A path is loaded as it was
        then. A Model is changed: it gets the parameters of the step, and those of its adapters that it has not.

    Raises
    ------
    CheckpointError
        The folder is damaged, or the model is another one.
    """
    folder = Path(expand(folder, "folder"))
    bad = read_bad_step(folder)
    with _as_written(folder):
        opened = _opened(bad, model) if model is None or isinstance(model, (str, os.PathLike)) else model
        return _replayed(bad, opened, folder)


@contextmanager
def _as_written(folder: Path) -> Iterator[None]:
    """What no run would have written ends in one line."""
    try:
        yield
    except LoraCError:
        raise
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError, MemoryError) as error:
        got = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{folder}: expected a step as a run writes it, got one that cannot be computed ({got})"
        ) from None


def _replayed(bad: BadStep, model: Model, folder: Path) -> Replay:
    _put_on(bad, model, folder)
    _tell_other_kernels(bad, model)
    with _as_then(bad, model):
        loss, found = _computed(bad, model)
    norms: dict[str, float] = {}
    digest = gradients_digest(_measured(model, norms))
    largest = sorted(norms, key=lambda name: -norms[name] if np.isfinite(norms[name]) else -np.inf)[:_MOST_NORMS]
    return Replay(
        bad.record.step,
        bad.record.problem,
        loss / sum(batch.total_weight for batch in bad.batches),
        float(loss).hex() == bad.record.loss,
        digest == bad.record.gradients,
        _first(bad, model, found),
        {name: norms[name] for name in largest},
    )


def _measured(model: Model, norms: dict[str, float]) -> Iterator[NDArray[np.float32] | None]:
    """Each gradient; its norm is noted on the way."""
    for parameter in model.trainable_parameters():
        gradient = parameter.grad
        norms[parameter.name] = math.sqrt(sum(_squares(gradient)))
        yield gradient


def _squares(array: NDArray[np.float32] | None) -> Iterator[float]:
    """Sums of squares in float64, each of a piece of the array."""
    values = np.zeros(0, np.float32) if array is None else array.reshape(-1)
    for start in range(0, values.size, _PIECE):
        yield float(np.square(values[start : start + _PIECE], dtype=np.float64).sum())


def _opened(bad: BadStep, path: str | os.PathLike[str] | None) -> Model:
    from ..model.opening import load_model

    base = bad.record.base
    return load_model(base["path"] if path is None else path, **base["load"], device=bad.record.kernels["device"])


def _put_on(bad: BadStep, model: Model, folder: Path) -> None:
    """Give a model the adapters and the parameters of a step."""
    for name, options in bad.record.adapters.items():
        if name not in model.adapter_set:
            _add(model, name, options, folder)
            if name in bad.record.frozen:
                _freeze(model, name)
    names = list(bad.record.adapters)
    if names:
        model.set_adapter(names if len(names) > 1 else names[0])
    _set_parameters(bad, model, folder)
    if model_digest(model) != bad.record.model:
        raise CheckpointError(
            f"{folder}: expected the model of the run (digest {bad.record.model[:8]}), got another one; give the base with "
            "--model, or in Python a model as it was then, with its adapters: replay(folder, model)"
        )


def _add(model: Model, name: str, options: dict[str, Any], folder: Path) -> None:
    try:
        model.add_adapter(config_of(options), name)
    except (AdapterError, ConfigError) as error:  # files may hold what no new adapter may have
        raise CheckpointError(
            f"{folder}: expected an adapter {name!r} that can be made of its options, got one that cannot ({error}); in "
            "Python give a model that has it: replay(folder, model)"
        ) from None


def _freeze(model: Model, name: str) -> None:
    """Put an adapter that is not trained in the place of one that is."""
    frozen = frozen_adapter(model.adapter_set[name], model.architecture, model.device)
    model.adapter_set.remove(name)
    model.adapter_set.add(name, frozen)


def _set_parameters(bad: BadStep, model: Model, folder: Path) -> None:
    """Give what is trained, and the adapters that are not, the values of a step."""
    own = kept_parameters(model)
    for name, array in bad.parameters.items():
        if name not in own or own[name].shape != array.shape:
            got = f"shape {own[name].shape}" if name in own else "none"
            raise CheckpointError(f"{folder}: expected a parameter {name} {array.shape}, got {got}; it is another model")
        set_values(own[name], array)
    if set(own) - set(bad.parameters):
        raise CheckpointError(f"{folder}: expected no other parameters, got {min(set(own) - set(bad.parameters))}")
    for part in model.adapter.parts() if model.adapter is not None else ():
        if part.tokens is not None:
            part.tokens.whole()  # rows that are not trained are looked up in their copy of the embedding


def _tell_other_kernels(bad: BadStep, model: Model) -> None:
    own = kernels(model.device)
    other = {name: (then, own[name]) for name, then in bad.record.kernels.items() if own.get(name) != then}
    if other:
        listed = ", ".join(f"{name} {then} (now {now})" for name, (then, now) in other.items())
        tell(f"the step was computed with {listed}: its bits need not be the same here")


@contextmanager
def _as_then(bad: BadStep, model: Model) -> Iterator[None]:
    """The settings of the decoder that the run had, while it looks at every value."""
    decoder = model.decoder
    before = {name: getattr(decoder, name) for name in bad.record.settings}
    try:
        for name, value in bad.record.settings.items():
            setattr(decoder, name, tuple(value) if isinstance(value, list) else value)  # JSON has no tuples
        decoder.watching = True
        yield
    finally:
        decoder.watching = False
        for name, value in before.items():
            setattr(decoder, name, value)
        decoder.free_activations()


def _computed(bad: BadStep, model: Model) -> tuple[float, dict[str, Any] | None]:
    """The loss of all micro-batches, and what was found in the first of them that had something."""
    tree, n = GradientTree(model.trainable_parameters()), len(bad.batches)
    tree.begin(n, 0, n)
    total_weight = sum(batch.total_weight for batch in bad.batches)
    loss, found = 0.0, None
    for i, batch in enumerate(bad.batches):
        loss += model.decoder.forward_backward(
            batch.input_ids, batch.cu_seqlens, batch.targets, batch.loss_weight, grad_scale=1.0 / total_weight,
            dropout_step=bad.record.first_dropout_step + i,
        )  # fmt: skip
        tree.next()
        if found is None and model.decoder.first_nonfinite is not None:
            found = {"batch": i, **model.decoder.first_nonfinite}
    return loss, found


def _first(bad: BadStep, model: Model, found: dict[str, Any] | None) -> FirstNonFinite | None:
    for name, array in bad.parameters.items():
        wrong = find_non_finite(array)
        if wrong:
            where = f"the parameter {name}, before the step"
            row, column = (0, *wrong[0])[-2:]
            return FirstNonFinite(where, "", "", 0, row, column, wrong[1], None)
    if found is None:
        return None
    place = "backward" if found["backward"] else "forward"
    layer = f"layers.{found['layer']}" if found["layer"] >= 0 else ""
    where = ".".join(part for part in (layer, found["weight"]) if part) or "the embedding and what is around the layers"
    numbers = {name: found[name] for name in ("operation", "result", "batch", "row", "column", "value")}
    first = FirstNonFinite(f"{where}, {place}", **numbers, token=None)
    return replace(first, token=_token(bad.batches[found["batch"]], model, first))


def _token(batch: PackedBatch, model: Model, first: FirstNonFinite) -> str | None:
    """The text of the token of a row; gradients of weights have other rows."""
    of_weight = first.result in ("dA", "dB", "dW", "dbias", "dmagnitude", "dweight", "norm", "merged", "loss_sum")
    if of_weight or not model.has_tokenizer:
        return None
    segments = np.repeat(np.arange(1, len(batch.cu_seqlens)), np.diff(batch.cu_seqlens))
    rows = np.arange(batch.n_tokens) + model.decoder.virtual_tokens * segments  # virtual tokens stand before each
    found = batch.input_ids[rows == first.row]
    if not len(found):
        return None
    number = int(found[0])
    return model.tokenizer.decode([number]) or model.tokenizer.backend.id_to_token(number) or f"token {number}"
