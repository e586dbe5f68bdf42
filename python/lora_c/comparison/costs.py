"""What a model costs on this machine: memory of the process, seconds of a token, of a step, of a change of adapters."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bench import DecodeBench
from ..errors import LoraCError
from ..files.system import peak_bytes

if TYPE_CHECKING:
    from ..model.model import Model

_ROUNDS, _TOKENS, _PROMPT = 5, 24, 16  # of decoding, by turns so that a busy moment hits all alike
_SWAPS = 20


def peak_rss_bytes() -> int:
    """The most memory that this program has had in use so far, as the system counts it.

    Linux hands ru_maxrss on to what a process starts, whose own peak is VmHWM.
    """
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    return peak_bytes()


def steps_per_second(history: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """(steps, tokens) a second of the usual step: the middle of all, without the slow tenth and the fast one.

    None where fewer than two steps followed each other in one call.
    """
    steps = [record for record in history if "tokens" in record and "elapsed_seconds" in record]
    found = sorted(
        (after["elapsed_seconds"] - before["elapsed_seconds"], after["tokens"] - before["tokens"])
        for before, after in zip(steps, steps[1:], strict=False)
        if after["step"] == before["step"] + 1 and after["elapsed_seconds"] > before["elapsed_seconds"]
    )
    cut = len(found) // 10
    middle = found[cut : len(found) - cut]
    if not middle:
        return None
    seconds, tokens = (sum(column) for column in zip(*middle, strict=True))
    return len(middle) / seconds, tokens / seconds


def token_seconds(ways: Mapping[str, tuple[Model, bool]]) -> dict[str, float]:
    """Median seconds of one decoded token, by name; the models take turns.

    Parameters
    ----------
    ways : mapping
        Name to a model and whether it decodes without its adapter.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_ROUNDS):
        for name, (model, bare) in ways.items():
            tokens = min(_TOKENS, model.context_length - 2)
            with model.disable_adapter() if bare else nullcontext():
                prompt = min(_PROMPT, model.context_length - tokens)
                found[name] += DecodeBench(model, tokens, prompt).measure().seconds
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def latency_of(model: Model) -> dict[str, Any]:
    """Seconds of a token of the base, with the adapter, and merged; and how far the merged logits are from the adapter's.

    What there is not, or cannot be merged, is left out; "not_merged" says why.
    """
    if model.adapter_config is None:
        return {"unmerged": token_seconds({"unmerged": (model, False)})["unmerged"]}
    ways: dict[str, tuple[Model, bool]] = {"base": (model, True), "unmerged": (model, False)}
    values: dict[str, Any] = {}
    try:
        ways["merged"] = (model.merge(dtype=_stored_as(model)), False)
        values["merged_logit_difference"] = _logit_difference(model, ways["merged"][0])
    except LoraCError as error:
        values["not_merged"] = str(error)
    return {**token_seconds(ways), **values}


def _stored_as(model: Model) -> Any:
    """The type in which the base has its matrices, so that a merged model reads as many bytes."""
    from ..weights.quantization import quantization_of

    kinds = [quantization_of(weight) for weight in model.weights.values()]
    quantized = next((kind for kind in kinds if kind is not None), None)
    if quantized is not None:
        return quantized.quant_type
    types = {getattr(weight, "dtype", None) for weight in model.weights.values() if len(weight.shape) == 2}
    return "bfloat16" if {str(kind) for kind in types} == {"bfloat16"} else "float32"


def _logit_difference(model: Model, merged: Model) -> float:
    """The largest difference of a logit by the largest logit, over tokens of an arithmetic row."""
    vocab = int(model.architecture.decoder_kwargs["vocab_size"])
    ids = (np.arange(16, dtype=np.int32) * 7 + 3) % vocab
    one, other = model.decoder.logits(ids), merged.decoder.logits(ids)
    return float(np.abs(one - other).max() / np.abs(one).max())


def swap_seconds(model: Model, folder: Path) -> float | None:
    """Median seconds of a change to another adapter that is in memory; None where the model has no single adapter.

    Parameters
    ----------
    folder : Path
        The adapter, saved.
    """
    own = model.active_adapter
    if own is None or len(model.adapter_names) != 1:
        return None
    try:
        model.load_adapter(folder, "another", is_trainable=False)
    except LoraCError:
        return None
    seconds = [_timed(lambda name=name: model.set_adapter(name)) for name in ["another", own] * _SWAPS]  # type: ignore[misc]
    model.delete_adapter("another")
    return statistics.median(seconds)


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
