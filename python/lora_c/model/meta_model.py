"""Models that have shapes and no values: from a config.json, or from the headers of a folder or a GGUF file.

They lie on the device "meta", count parameters and forecast memory as the model itself would on the CPU, and compute nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..checkpoints.folder import Checkpoint
from ..checkpoints.prequantized import quant_options, quant_type_of
from ..families.architectures import WeightSpec, architecture_of
from ..gguf.checkpoint import GGUFCheckpoint
from ..text.tokenizer import Tokenizer
from ..weights.forms import TABLES, Form, MetaWeights, form_of
from ..weights.parameter_values import META
from ..weights.parts import is_dequantized
from ..weights.quantization import NF4, Quantization
from .load_checks import check_load_options
from .loading import DENSE_DTYPES, LoadOptions, Trainable, check_tensors, new_parameters
from .model import Model
from .opening import config_of_checkpoint, open_checkpoint, tokenizer_of_checkpoint
from .wanted_task import WantedTask, check_seed


class MetaModel(Model):
    """A model without values.

    Attributes
    ----------
    forms : dict
        Decoder name of each frozen matrix to how it is kept.
    dequantized : set of str
        Those of which the decoder reads float32 (`weights.parts`).
    """

    forms: dict[str, Form]
    dequantized: set[str]

    def __repr__(self) -> str:
        return f"MetaModel({self.architecture.name}, {self.num_parameters():,} parameters)"

    def mapped_bytes(self) -> int:
        """Bytes of the weights that lie in a mapped file."""
        mapped = (name for name, form in self.forms.items() if form.is_mapped)
        return sum(self.forms[name].bytes_of(math.prod(self.weights[name].shape)) for name in mapped)

    def base_bytes(self) -> int:
        """Bytes of the weights that are not trained, those of an adapter's own base, too."""
        own = self.adapter.base if self.adapter is not None else {}
        kept = [*self.forms.items(), *((name, self.forms[name]) for name in own)]
        matrices = sum(form.bytes_of(math.prod(self.weights[name].shape)) for name, form in kept)
        matrices += TABLES * sum(form.own_tables for _, form in kept)
        matrices += 4 * sum(math.prod(self.weights[name].shape) for name in self.dequantized)
        return matrices + sum(w.nbytes for w in self.weights.values() if isinstance(w, np.ndarray))


def meta_model(
    config: Mapping[str, Any], options: LoadOptions, form: Callable[[WeightSpec], Form], source: Path,
    tokenizer: Tokenizer | None = None, device: str = META,
) -> MetaModel:  # fmt: skip
    """Return a model without values.

    Parameters
    ----------
    config : mapping
        Its config.json.
    options : LoadOptions
        What is trained of it.
    form : callable
        How a matrix that is frozen is kept.
    source : path
        What it is called.
    tokenizer : Tokenizer, optional
        Its tokenizer.
    device : str
        "meta", which forecasts the CPU, or "meta:8.6" for a GPU by its compute capability.
    """
    architecture = architecture_of(config)
    specs = architecture.weights()
    values: dict[str, Any] = new_parameters([spec for spec in specs if options.trains(spec)], device)
    forms = {spec.name: form(spec) for spec in specs if spec.name not in values and spec.kind != "vector"}
    dequantized = {spec.name for spec in specs if spec.name in forms and _is_dequantized(spec, forms[spec.name])}
    for spec in specs:
        if spec.name not in values:
            kept = Form("float32") if spec.name in dequantized else forms.get(spec.name)
            values[spec.name] = np.zeros(spec.shape, np.float32) if kept is None else kept.weight(spec.shape, device)
    weights = MetaWeights({spec.name: values[spec.name] for spec in specs}, forms=forms, device=device)
    quantization = options.quantization or NF4
    model = MetaModel(dict(config), architecture, weights, source, tokenizer, quantization, device=device)
    model.forms, model.dequantized = forms, dequantized
    return model


def _is_dequantized(spec: WeightSpec, form: Form) -> bool:
    return form.kind == "4bit" and is_dequantized(spec.parts, spec.shape, form.quantization)


def meta_model_of_shape(
    name: str,
    config: Mapping[str, Any],
    quantization: Quantization | None,
    trainable: Trainable = "none",
    device: str = META,
) -> MetaModel:
    """Return the model of a config.json alone, whose files are taken to be bfloat16.

    Parameters
    ----------
    name : str
        What it is called.
    quantization : Quantization, optional
        Of the projections.
    trainable : "none", "full" or "head"
        As `load_model` takes it.
    device : str
        As `meta_model` takes it.
    """
    options = LoadOptions(quantization, trainable=trainable)
    config = dict(config) | ({"tie_word_embeddings": False} if trainable == "head" else {})

    def form(spec: WeightSpec) -> Form:
        return form_of(quantization) if quantization and options.quantizes(spec) else Form("bfloat16")

    return meta_model(config, options, form, Path(name), device=device)


def open_meta(
    path: str | os.PathLike[str], quantize: Any = None, double_quant: bool = True, block_size: int = 64,
    dtype: Literal["float32", "bfloat16"] | None = None, trainable: Trainable = "none", *, device: str = META, seed: int = 0,
    **task: Any,
) -> MetaModel:  # fmt: skip
    """Return what `load_model` would, without values: only headers are read.

    Parameters
    ----------
    path : path or str
        A model folder or a GGUF file, by its path or its name.
    quantize, double_quant, block_size, dtype, trainable, seed
        As `load_model` takes them.
    device : str
        As `meta_model` takes it.
    **task
        What `load_model` takes of classifiers.

    Raises
    ------
    CheckpointError
        The folder cannot be used.
    """
    check_load_options(quantize, double_quant, block_size, dtype, trainable)
    asked = Quantization(quantize, block_size, double_quant) if quantize else None
    options = LoadOptions(asked, DENSE_DTYPES.get(dtype or ""), trainable, seed=check_seed(seed))
    wanted = WantedTask(**task)
    with open_checkpoint(path) as checkpoint:
        config = wanted.config_of(config_of_checkpoint(checkpoint, trainable))
        sources = check_tensors(checkpoint, architecture_of(config))
        form = _forms(checkpoint, sources, options)
        return meta_model(config, options, form, checkpoint.path, tokenizer_of_checkpoint(checkpoint, config), device)


def _forms(
    checkpoint: Checkpoint | GGUFCheckpoint, sources: Mapping[str, str], options: LoadOptions
) -> Callable[[WeightSpec], Form]:
    """How each matrix of a checkpoint is kept, as `load_weights` keeps it."""
    names = checkpoint.tensors
    is_prequantized = any(quant_type_of(source, names) for source in sources.values())

    def form(spec: WeightSpec) -> Form:
        source = sources.get(spec.name)
        if source is None:  # a classifier's score, which no file has
            return Form("float32")
        kind = quant_type_of(source, names)
        stays = kind is not None and (options.dtype is None or options.quantization is not None)
        if options.dtype is not None and not stays and (is_prequantized or not options.quantizes(spec)):
            return Form(str(options.dtype))
        if kind is not None:
            block, nested = quant_options(source, names, checkpoint.read)
            return Form("4bit", Quantization(kind, block, nested), own_tables=True)  # type: ignore[arg-type]
        if options.quantization is not None and options.quantizes(spec) and not is_prequantized:
            return form_of(options.quantization)
        dtype = names[source].dtype
        if isinstance(checkpoint, GGUFCheckpoint) and dtype != "F32":
            return Form(dtype, is_mapped=True)
        return Form("bfloat16" if dtype == "BF16" else "float32")

    return form
