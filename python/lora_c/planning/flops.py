"""The operations of a token in training, counted: an addition and a multiplication are two."""

from __future__ import annotations

import math
import re

from .._core import Parameter
from ..configs.training import Recompute
from ..families.architectures import WeightSpec
from .subject import Subject
from .terms import Term

_LAYER = re.compile(r"^layers\.(\d+)\.")


def flop_terms(subject: Subject, recompute: Recompute) -> list[Term]:
    """What a token costs in the matrices of the layers, in attention, in the adapter and in the head, forward and backward.

    Everything else (norms, activations, the optimizer) reads more than it computes, and is left out.
    """
    model = subject.model
    sizes, lowest = model.architecture.decoder_kwargs, _lowest_layer(subject)
    layers = int(sizes["num_hidden_layers"])
    above = layers - lowest  # layers that have a backward pass
    specs = [spec for spec in model.architecture.weights() if spec.kind == "projection"]
    forward = sum(math.prod(spec.shape) for spec in specs)
    backward = sum(math.prod(spec.shape) for spec in specs if _number(spec) >= lowest)
    trained = sum(math.prod(spec.shape) for spec in specs if _is_trained(subject, spec))
    adapted = sum(layer.A.size + layer.B.size for layer in model.adapters.values())
    context, width = mean_context(subject), int(sizes["num_attention_heads"]) * int(sizes["head_dim"])
    vocab, hidden = _head(subject)
    terms = [
        Term("forward, matrices of the layers", f"2 x {forward:,}", 2 * forward),
        Term("forward, attention", f"4 x {layers} x {context:,.1f} x {width:,}", 4 * layers * context * width),
        Term("forward, head", f"2 x {vocab:,} x {hidden:,}", 2 * vocab * hidden),
        Term("backward, gradients of what the matrices read", f"2 x {backward:,}", 2 * backward),
        Term("backward, attention", f"10 x {above} x {context:,.1f} x {width:,}", 10 * above * context * width),
        Term("backward, head", f"2 x {vocab:,} x {hidden:,}", 2 * vocab * hidden),
        Term("backward, gradients of the matrices", f"2 x {trained:,}", 2 * trained),
        Term("adapter, forward and backward", f"6 x {adapted:,}", 6 * adapted),
    ]
    if _trains_head(subject):
        terms.append(Term("backward, gradient of the head", f"2 x {vocab:,} x {hidden:,}", 2 * vocab * hidden))
    if recompute == "layer" and above:
        again = 2 * backward + 4 * above * context * width + 2 * adapted
        formula = f"2 x {backward:,} + 4 x {above} x {context:,.1f} x {width:,} + 2 x {adapted:,}"
        terms.append(Term("forward again (recompute)", formula, again))
    if recompute == "attention" and above:
        again = sum(math.prod(spec.shape) for spec in specs if _number(spec) >= lowest and _of_attention(spec.name))
        low = sum(layer.A.size + layer.B.size for name, layer in model.adapters.items() if _of_attention(name))
        terms.append(Term("projections of attention again (recompute)", f"2 x {again:,} + 2 x {low:,}", 2 * again + 2 * low))
    return [term for term in terms if term.value]


def mean_context(subject: Subject) -> float:
    """How many tokens a token attends to in the mean of all layers: half of a sequence, or a window."""
    sizes = subject.model.architecture.decoder_kwargs
    layers, length = int(sizes["num_hidden_layers"]), subject.mean_length
    windows = sizes.get("sliding_window", 0)
    of_layers = [windows] * layers if isinstance(windows, int) else list(windows)
    return sum(_mean_of(length, int(window)) for window in of_layers) / layers


def _mean_of(length: float, window: int) -> float:
    if window <= 0 or window >= length:
        return (length + 1) / 2
    return window - window * (window - 1) / (2 * length)


def _of_attention(name: str) -> bool:
    return name.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "o_proj")


def _number(spec: WeightSpec) -> int:
    found = _LAYER.match(spec.name)
    return int(found[1]) if found else -1


def _lowest_layer(subject: Subject) -> int:
    """The first layer through which gradients flow."""
    model = subject.model
    layers = int(model.architecture.decoder_kwargs["num_hidden_layers"])
    adapter = model.adapter
    if adapter is not None and not model.adapters:
        return 0
    names = [*model.adapters, *(adapter.replaced() if adapter else ())]
    names += [name for name, weight in model.weights.items() if isinstance(weight, Parameter)]
    numbers = [0 if name.startswith("embed") else int(found[1]) if (found := _LAYER.match(name)) else layers for name in names]
    return min(numbers, default=layers)


def _is_trained(subject: Subject, spec: WeightSpec) -> bool:
    return isinstance(subject.model.weights.get(spec.name), Parameter)


def _trains_head(subject: Subject) -> bool:
    model = subject.model
    name = "lm_head" if "lm_head" in model.weights else "embed_tokens"
    return isinstance(model.weights[name], Parameter) or (model.adapter is not None and "lm_head" in model.adapter.replaced())


def _head(subject: Subject) -> tuple[int, int]:
    sizes = subject.model.architecture.decoder_kwargs
    rows = int(sizes.get("num_labels") or sizes["vocab_size"])
    return rows, int(sizes["hidden_size"])
