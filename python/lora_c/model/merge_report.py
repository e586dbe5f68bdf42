"""What a merge keeps and what it loses, measured on a text sample and on the weights.

The model with its adapter is the reference: perplexity, Kullback-Leibler divergence KL(adapter || merged) of the next token
in nats, and the share of positions whose most probable token is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import AdapterError, ConfigError, DataError
from ..weights.kinds import dense
from . import merge
from .folded import Folds

if TYPE_CHECKING:
    from .model import Model

TARGETS: tuple[merge.MergeDtype, ...] = get_args(merge.MergeDtype)
MAX_TOKENS, SEGMENT = 1024, 256
_MAX_LOGITS = 1 << 26  # values of the reference that are kept: 256 MiB
_GREEDY_TOKENS = 96

# The default sample: plain prose, written for this purpose.
SAMPLE = """The harbour wakes before the town does. Long before the first tram, the boats come in with their lamps
still lit, and the men on the quay count crates of herring by touch more than by sight. A woman with a red scarf
writes each number in a ledger, and nobody argues with her, because her sums have been right for twenty years. When
the sun clears the warehouses, the ice in the crates begins to shine, the gulls arrive, and the price of fish goes
down by a third.

"How do you know when to stop?" a child once asked her. She thought about it, closed the book, and said: "When the
last boat is in, when the list agrees with the pile, and when I have checked it twice. Two of the three are not
enough."

In the afternoon the same quay is a different place. Tourists photograph the nets, a school class measures the tide
with a painted pole, and the harbour master explains, for the hundredth time, why salt water freezes at a lower
temperature than fresh water, and why a ship floats although iron does not. The numbers on his board read 4.2, 3.9,
3.1 and 2.4 metres. He draws a curve through them with a piece of chalk, and the curve says what everyone here already
knows: the sea will be back by six."""


@dataclass(frozen=True)
class Agreement:
    """How a model compares with the reference on the sample."""

    perplexity: float
    mean_kl: float
    max_kl: float
    equal_top1: float


@dataclass(frozen=True)
class WeightError:
    """||merged - exact|| / ||exact|| of one matrix, exact being W + s B A in float32."""

    name: str
    relative_error: float


@dataclass
class MergeReport:
    """What `merge_with_report` measured. `targets` holds the same figures for every type that could have been chosen."""

    dtype: str
    sample: str
    tokens: int
    base_perplexity: float
    adapter_perplexity: float
    merged: Agreement
    layers: list[WeightError]
    targets: dict[str, Agreement]
    target_weight_error: dict[str, float]
    tied_embeddings: str
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For merge_report.json."""
        return asdict(self)

    def as_text(self) -> str:
        """The report as a table to read."""
        worst = sorted(self.layers, key=lambda layer: -layer.relative_error)[:5]
        lines = [
            f"merge report: {self.dtype}, measured on {self.tokens:,} tokens of {self.sample}",
            f"perplexity  base {_number(self.base_perplexity)}, base + adapter {_number(self.adapter_perplexity)}, "
            f"merged {_number(self.merged.perplexity)}",
            f"embeddings  {self.tied_embeddings}",
            "",
            "type       perplexity   mean KL    max KL  top-1 =   weights",
        ]
        for name, found in self.targets.items():
            lines.append(
                f"{name + ('*' if name == self.dtype else ''):<9} {_number(found.perplexity):>11} {found.mean_kl:>9.3g} "
                f"{found.max_kl:>9.3g} {found.equal_top1:>8.2%} {self.target_weight_error[name]:>9.3g}"
            )
        lines += [
            "",
            "* is what was written. KL: nats of the next token.",
            "top-1 =: positions with the same most probable token.",
            "weights: the largest relative error of a matrix.",
        ]
        lines += ["", f"largest weight errors of {self.dtype}:"]
        lines += [f"  {layer.name:<40} {layer.relative_error:.3g}" for layer in worst]
        return "\n".join(lines) + "\n"


def merge_with_report(
    model: Model,
    dtype: merge.MergeDtype = "float32",
    segments: list[list[int]] | None = None,
    sample: str | None = None,
) -> tuple[Model, MergeReport]:
    """Merge the adapter in use and measure what every target type would have lost.

    Parameters
    ----------
    segments : list of lists of int, optional
        Token ids to measure on; by default `default_segments`. What does not fit the memory for the reference is left out.
    sample : str, optional
        What to call them in the report.

    Raises
    ------
    AdapterError
        There is no adapter, or the merged weights are not finite in the chosen type.
    """
    _check_can_measure(model)
    chosen = merge.merge_model(model, dtype)  # first: a refusal comes before the work
    segments = _cut(default_segments(model) if segments is None else segments, model)
    reference = [model.decoder.logits(np.asarray(ids, np.int32)) for ids in segments]
    active = model.active_adapter
    targets: dict[str, Agreement] = {}
    layers: dict[str, list[WeightError]] = {}
    lost: dict[str, str] = {}
    for target in TARGETS:
        try:
            merged = chosen if target == dtype else merge.merge_model(model, target)
        except AdapterError as error:  # float16 may not hold a value; the chosen type has been checked
            lost[target] = str(error)
            continue
        targets[target] = _agreement(merged, segments, reference)
        layers[target] = list(_weight_errors(model, merged))
    adapter_perplexity = _perplexity(segments, reference)
    model.set_adapter(None)
    try:
        base = _perplexity(segments, [model.decoder.logits(np.asarray(ids, np.int32)) for ids in segments])
    finally:
        model.set_adapter(active)
    report = MergeReport(
        dtype=dtype,
        sample=sample or default_sample_of(model),
        tokens=sum(map(len, segments)),
        base_perplexity=base,
        adapter_perplexity=adapter_perplexity,
        merged=targets[dtype],
        layers=layers[dtype],
        targets=targets,
        target_weight_error={name: max((e.relative_error for e in found), default=0.0) for name, found in layers.items()},
        tied_embeddings=_tied(model, chosen),
        details={"impossible_targets": lost} if lost else {},
    )
    return chosen, report


def _check_can_measure(model: Model) -> None:
    if model.adapter is None or model.is_merged:
        raise AdapterError(
            "merge_with_report: expected a model with an active adapter, got none, or one that is merged already"
        )
    if model.labels is not None:
        raise ConfigError(
            "merge_with_report: expected a language model, whose next tokens are compared, got a classifier; call merge()"
        )


def default_segments(model: Model) -> list[list[int]]:
    """The sample that comes with the package, and what the model with its adapter writes by itself.

    Without a tokenizer only the latter, from the first token on.
    """
    from ..configs import GenerationConfig
    from ..generation.answers import generate_ids

    room = model.context_length
    start = int(model.config.get("bos_token_id") or 0)
    segments = []
    if model.has_tokenizer:
        ids = model.tokenizer.encode(SAMPLE)
        size = min(SEGMENT, room)
        segments = [ids[i : i + size] for i in range(0, len(ids), size)]
    budget = min(_GREEDY_TOKENS, room - 1)
    own = [start, *generate_ids(model, [start], GenerationConfig(max_new_tokens=budget, ignore_eos=True, precision="exact"))]
    return [ids for ids in [*segments, own] if len(ids) > 1]


def default_sample_of(model: Model) -> str:
    """What the default sample is made of, in words: the model with its adapter writes a part of it."""
    own = min(_GREEDY_TOKENS, model.context_length - 1) + 1
    prose = "the package's own prose and " if model.has_tokenizer else ""
    return f"the default sample: {prose}{own} tokens that the model with its adapter writes"


def segments_of(model: Model, path: str, columns: dict[str, str] | None = None) -> list[list[int]]:
    """Token ids of a data file, sample by sample; `columns` as in `load_dataset`.

    Raises
    ------
    DataError
        It holds no sample of two tokens or more.
    """
    from ..data import load_dataset

    data = load_dataset(path, model.tokenizer, max_seq_length=min(SEGMENT, model.context_length), columns=columns)
    segments = [[int(i) for i in sample.input_ids] for sample in data.samples if len(sample.input_ids) > 1]
    if not segments:
        raise DataError(f"{path}: expected a sample of two tokens or more, got none")
    return segments


def _cut(segments: list[list[int]], model: Model) -> list[list[int]]:
    """As many tokens as the memory for the reference allows."""
    vocab, room = model.decoder.config["vocab_size"], model.context_length
    left = min(MAX_TOKENS, max(2, _MAX_LOGITS // int(vocab)))
    kept = []
    for ids in segments:
        ids = list(ids)[: min(left, room)]
        if len(ids) > 1:
            kept.append(ids)
        left -= len(ids)
        if left < 2:
            break
    if not kept:
        raise ConfigError("segments: expected at least one with two tokens or more, got none")
    return kept


def _number(perplexity: float) -> str:
    return f"{perplexity:.4f}" if perplexity < 1e5 else f"{perplexity:.4g}"


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return result


def _perplexity(segments: list[list[int]], logits: list[NDArray[np.float32]]) -> float:
    loss = tokens = 0.0
    for ids, values in zip(segments, logits, strict=True):
        log_p = _log_softmax(values[:-1])
        loss -= float(log_p[np.arange(len(ids) - 1), ids[1:]].sum())
        tokens += len(ids) - 1
    return math.exp(min(loss / tokens, 700.0))


def _agreement(merged: Model, segments: list[list[int]], reference: list[NDArray[np.float32]]) -> Agreement:
    logits, divergence, equal = [], [], []
    for ids, exact in zip(segments, reference, strict=True):
        got = merged.decoder.logits(np.asarray(ids, np.int32))
        log_p, log_q = _log_softmax(exact), _log_softmax(got)
        divergence.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
        equal.append(exact.argmax(axis=1) == got.argmax(axis=1))
        logits.append(got)
    kl = np.maximum(np.concatenate(divergence), 0.0)
    return Agreement(_perplexity(segments, logits), float(kl.mean()), float(kl.max()), float(np.concatenate(equal).mean()))


def _weight_errors(model: Model, merged: Model) -> Iterator[WeightError]:
    whole = merge.whole_tensors(model)
    folds = Folds() if model.adapter is None else Folds.of(model.adapter, "merge")
    for spec in merged.architecture.weights():
        if spec.kind == "vector":
            continue
        weight = whole.get(
            spec.name, model.weights.get(spec.name, model.weights["embed_tokens"])
        )  # a head that is untied here
        exact = np.asarray(folds.weight(spec.name, weight) if spec.name in folds else dense(weight), np.float32)
        lost = np.linalg.norm(np.asarray(dense(merged.weights[spec.name]), np.float32) - exact)
        size = np.linalg.norm(exact)
        yield WeightError(spec.name, float(lost / size) if size else 0.0)


def _tied(model: Model, merged: Model) -> str:
    if merged.architecture.tied:
        return "tied, as in the base"
    return (
        "untied by the adapter: the head is written as a matrix of its own"
        if model.architecture.tied
        else "not tied in the base"
    )
