"""A sum that is shown: what is counted, from which numbers, and what comes out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .._core import Parameter
from ..families.architectures import WeightSpec
from ..model.meta_model import MetaModel
from ..training.memory import MemoryForecast
from ..weights.forms import TABLES, Form
from ..weights.quantization import NESTED
from .subject import Subject

_LAYER = re.compile(r"(^|\.)(layers|h)\.\d+\.")
_PREFIXES = ("base_model.model.", "model.", "transformer.")


@dataclass(frozen=True)
class Term:
    """One part of a sum.

    Attributes
    ----------
    name : str
        What is counted.
    formula : str
        The numbers that it is counted from.
    value : float
        The product.
    """

    name: str
    formula: str
    value: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "formula": self.formula, "value": self.value}


def parameter_terms(parameters: Iterable[Parameter]) -> list[Term]:
    """What is trained: parameters of one name in all layers together."""
    groups: dict[tuple[str, tuple[int, ...]], int] = {}
    for parameter in parameters:
        key = _without_layer(parameter.name), tuple(parameter.shape)
        groups[key] = groups.get(key, 0) + 1
    return [_term_of(name, shape, count) for (name, shape), count in groups.items()]


def _term_of(name: str, shape: tuple[int, ...], count: int) -> Term:
    sizes = " x ".join(f"{n:,}" for n in shape)
    return Term(name, f"{count:,} x {sizes}" if count > 1 else sizes, count * math.prod(shape))


def _without_layer(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return _LAYER.sub(r"\1", name)


def base_terms(model: MetaModel) -> list[Term]:
    """The bytes of the frozen weights: matrices of layers with their scales, embedding, head, and vectors."""
    groups: dict[tuple[str, Form], int] = {}
    n_vectors = 0
    for spec in model.architecture.weights():
        form = model.forms.get(spec.name)
        if form is not None:
            key = _kind(spec), form
            groups[key] = groups.get(key, 0) + math.prod(spec.shape)
        elif not isinstance(model.weights[spec.name], Parameter):
            n_vectors += math.prod(spec.shape)
    n_tables = sum(form.own_tables for form in model.forms.values())
    terms = [term for (kind, form), count in groups.items() for term in _matrix_terms(kind, form, count)]
    terms.append(Term("tables of codes", f"{n_tables:,} x {TABLES:,} bytes", TABLES * n_tables))
    dense = sum(math.prod(model.weights[name].shape) for name in model.dequantized)
    terms.append(Term("the same in float32, where rows of blocks cannot be borrowed", f"{dense:,} x 4 bytes", 4 * dense))
    return [*terms, Term("norms and biases", f"{n_vectors:,} x 4 bytes", 4 * n_vectors)]


def _kind(spec: WeightSpec) -> str:
    return {"projection": "matrices of the layers", "positions": "embedding of positions"}.get(spec.kind, spec.kind)


def _matrix_terms(kind: str, form: Form, count: int) -> list[Term]:
    if form.kind != "4bit":
        bits = 8 * form.bytes_of(count) / count
        return [Term(kind, f"{count:,} x {bits:g} bits ({form.name})", form.bytes_of(count))]
    each = f"(1 byte + 4 bytes / {NESTED})" if form.quantization.double_quant else "4 bytes"
    codes = Term(kind, f"{count:,} x 4 bits ({form.name})", -(-count // 2))
    return [codes, Term("scales", f"{count:,} / {form.quantization.block_size} x {each}", form.scale_bytes(count))]


def memory_terms(subject: Subject, plan: MemoryForecast, optimizer: str) -> list[Term]:
    """The memory of a run by kind, whose sum is the forecast."""
    trained = plan.parameters // 4
    n_tokens, _ = subject.micro_batch()
    terms = base_terms(subject.model)
    if (own := plan.base - int(sum(term.value for term in terms))) > 0:
        terms.append(Term("base of the adapter's own", "beside the model's", own))
    what = "adapter" if subject.model.adapter is not None else "weights that are trained"
    terms += [
        Term(what, f"{trained:,} x 4 bytes", plan.parameters),
        Term("gradients", f"{trained:,} x 4 bytes", plan.gradients),
        Term(f"optimizer ({optimizer})", f"{trained:,} x {plan.optimizer / max(1, trained):.3g} bytes", plan.optimizer),
        Term("activations", f"{n_tokens:,} tokens x {plan.activations / n_tokens:,.0f} bytes", plan.activations),
        Term("scratch", "head and loss, packed operands of products", plan.scratch),
    ]
    return [term for term in terms if term.value]
