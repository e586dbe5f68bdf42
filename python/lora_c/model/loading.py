"""From a model folder or a GGUF file to weights in memory, tensor by tensor: read one, convert or quantize it, drop it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .._core import GGMLTensor, Parameter
from ..checkpoints.config_and_files import config_of_files
from ..checkpoints.folder import Checkpoint
from ..checkpoints.prequantized import parts_of, quant_type_of, read_4bit, refuse_other_quantization
from ..checkpoints.read_ahead import read_ahead
from ..checkpoints.safetensors_file import DTYPES, find_non_finite
from ..checkpoints.tied_head import head_names, own_head, stored_name
from ..checkpoints.unneeded_tensors import sort_out
from ..configs.quantization import Q8_0_BLOCK
from ..display.notebook_progress import in_notebook, tracked_in_notebook
from ..display.progress import draws_bars
from ..errors import CheckpointError, shorten
from ..families.architectures import Architecture, WeightSpec, architecture_of
from ..families.labels import is_classifier
from ..notices import tell
from ..weights.kinds import RequantizationError, Weights
from ..weights.parameter_values import set_values
from ..weights.quantization import NF4, Quantization, quantization_of
from .score import fresh_score

if TYPE_CHECKING:
    from ..gguf.checkpoint import GGUFCheckpoint

Trainable = Literal["none", "full", "head"]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)
DENSE_DTYPES: dict[str, np.dtype[Any]] = {"float32": FLOAT32, "bfloat16": BFLOAT16}


@dataclass(frozen=True)
class LoadOptions:
    """How tensors are kept. dtype None: as in the file (float16 becomes float32, which is exact). device: of what is trained,
    and where matrices are quantized; the rest is read into the memory of the CPU, and the decoder copies it."""

    quantization: Quantization | None = None
    dtype: np.dtype[Any] | None = None
    trainable: Trainable = "none"
    device: str = "cpu"
    seed: int = 0  # of a classifier's score that no file has

    def trains(self, spec: WeightSpec) -> bool:
        """Whether this tensor becomes a parameter."""
        return self.trainable == "full" or (self.trainable == "head" and spec.kind == "head")

    def quantizes(self, spec: WeightSpec) -> bool:
        """Whether this tensor is quantized: a matrix of the layers, of a shape that the type can have."""
        return self.quantization is not None and spec.kind == "projection" and self.quantization.fits(spec.shape)


def load_weights(
    checkpoint: Checkpoint | GGUFCheckpoint, architecture: Architecture, options: LoadOptions, progress: bool | None
) -> Weights:
    """Read every tensor of the architecture.

    Raises
    ------
    CheckpointError
        Tensors are missing, unexpected or misshaped, have a type that is not supported, or hold NaN or infinity.
    """
    sources = check_tensors(checkpoint, architecture)
    specs, every = specs_of(checkpoint, architecture), architecture.weights()
    weights = Weights(new_parameters([spec for spec in every if options.trains(spec)], options.device))
    prequantized = {quant_type_of(source, checkpoint.tensors) for source in sources.values()} - {None}
    _tell_of_other_type(checkpoint, prequantized, options)
    # What a prequantized folder left dense was left so on purpose: it stays as it is.
    dense_options = replace(options, quantization=None) if prequantized else options
    names = set(checkpoint.tensors)
    parts = {spec.name: sorted(parts_of(sources[spec.name]) & names) for spec in specs}
    ordered = sorted(specs, key=lambda spec: _place(checkpoint, sources[spec.name]))
    with read_ahead([[checkpoint.extent(part) for part in parts[spec.name]] for spec in ordered]) as reached:
        for i, spec in enumerate(_show_progress(ordered, progress)):
            reached(i)
            source = sources[spec.name]
            if isinstance(checkpoint, Checkpoint) and quant_type_of(source, checkpoint.tensors):
                _load_prequantized(spec, source, checkpoint, options, weights)
            else:
                _load_dense(spec, source, checkpoint, dense_options, weights)
            for part in parts[spec.name]:
                checkpoint.release(part)
    for spec in every[len(specs) :]:
        _draw_score(spec, checkpoint.config, options.seed, weights)
    weights.values = {spec.name: weights.values[spec.name] for spec in every}
    if dense_options.quantization is not None:
        _tell_of_misfits(specs, dense_options.quantization)
    return weights


def _tell_of_other_type(checkpoint: Checkpoint | GGUFCheckpoint, prequantized: set[str | None], options: LoadOptions) -> None:
    asked = options.quantization  # nf4 is also what a run asks for that leaves the type open
    if asked is not None and asked != NF4 and prequantized - {asked.quant_type}:
        kinds = " and ".join(sorted(map(str, prequantized)))
        tell(f"{checkpoint.path}: its weights are in {kinds} already and stay so; {asked.quant_type} is made of dense ones")


def _tell_of_misfits(specs: list[WeightSpec], quantization: Quantization) -> None:
    matrices = [spec for spec in specs if spec.kind == "projection"]
    others = [spec for spec in matrices if not quantization.fits(spec.shape)]
    if others:
        kinds = shorten(dict.fromkeys(spec.name.rpartition(".")[2] for spec in others))
        rows = ", ".join(map(str, sorted({spec.shape[-1] for spec in others})))
        tell(
            f"{len(others)} of {len(matrices)} matrices ({kinds}) stay as they are: a {quantization.quant_type.upper()} block "
            f"is {Q8_0_BLOCK} weights of a row, and their rows have {rows}"
        )


def weights_of_folder(folder: Path) -> dict[str, Any]:
    """The weights of a model folder as they are in its files, by decoder name."""
    with Checkpoint(folder) as checkpoint:
        checkpoint.config = config_of_files(checkpoint)
        return load_weights(checkpoint, architecture_of(checkpoint.config), LoadOptions(), progress=False).values


def _place(checkpoint: Checkpoint | GGUFCheckpoint, name: str) -> tuple[str, int]:
    """For sorting: files are fastest from front to back."""
    extent = checkpoint.extent(name)
    return str(extent.path), extent.start


def check_tensors(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, str]:
    """Return decoder name -> name in the file, after the headers alone have been checked: names, shapes, quantization.

    Raises
    ------
    CheckpointError
        Tensors are missing, unexpected or misshaped, or quantized in a way that cannot be read.
    """
    refuse_other_quantization(checkpoint.config, checkpoint.tensors)
    layers = architecture.decoder_kwargs["num_hidden_layers"]
    if layers > len(checkpoint.tensors):  # before anything grows with a number that nothing backs
        raise CheckpointError(
            f"{checkpoint.path}: expected the tensors of {layers} layers (num_hidden_layers in config.json), got "
            f"{len(checkpoint.tensors)} tensors"
        )
    specs = specs_of(checkpoint, architecture)
    sources = _sources(checkpoint, architecture, specs)
    _check_names(checkpoint, architecture, specs, sources)
    return sources


def specs_of(checkpoint: Checkpoint | GGUFCheckpoint, architecture: Architecture) -> list[WeightSpec]:
    """The tensors as this checkpoint stores them: in GGUF files every matrix is (out, in).

    The score of a classifier, which stands last, is not among those of a language model.
    """
    specs = architecture.weights()
    if architecture.labels is not None and not is_classifier(checkpoint.config):
        specs.pop()
    return specs if isinstance(checkpoint, Checkpoint) else [replace(spec, transposed=False) for spec in specs]


def _sources(checkpoint: Checkpoint | GGUFCheckpoint, architecture: Architecture, specs: list[WeightSpec]) -> dict[str, str]:
    """Decoder name to name in the file. Where the file's head is its embedding, either may be written for both."""
    names = checkpoint.tensors
    sources = {spec.name: stored_name(spec, names) for spec in specs}
    own = architecture_of(checkpoint.config)
    if own.tied:
        shared = next((name for name in (sources["embed_tokens"], *head_names(own)) if name in names), None)
        sources |= {spec.name: shared for spec in specs if spec.kind in ("embedding", "head") and shared is not None}
    return sources


def in_order(spec: WeightSpec, array: NDArray[Any]) -> NDArray[Any]:
    """A tensor of the file as (out, in)."""
    return np.ascontiguousarray(array.T) if spec.transposed else array


def _check_names(
    checkpoint: Checkpoint | GGUFCheckpoint, architecture: Architecture, specs: list[WeightSpec], sources: dict[str, str]
) -> None:
    present = set(checkpoint.tensors)
    missing = [spec.file_name for spec in specs if sources[spec.name] not in present]
    if missing:
        got = _missing(missing, checkpoint)
        raise CheckpointError(f"{checkpoint.path}: expected every tensor of the model, got none for {got}")
    known: set[str] = set()
    for spec in specs:
        quantized = quant_type_of(sources[spec.name], checkpoint.tensors)
        known |= parts_of(sources[spec.name]) if quantized else {sources[spec.name]}
        if quantized and spec.kind not in ("projection", "head"):
            raise CheckpointError(
                f"{spec.file_name}: expected a dense tensor, got a 4-bit one; only the projections of the layers and the head "
                "may be quantized, load the model that it was made from with quantize='nf4'"
            )
        shape = checkpoint.tensors[sources[spec.name]].shape
        if not quantized and shape != spec.file_shape:
            raise CheckpointError(
                f"{checkpoint.path}: {spec.file_name}: expected shape {spec.file_shape}, got {shape}; check config.json"
            )
    own = architecture_of(checkpoint.config)
    if architecture.labels is not None and own.labels is None:  # score takes the place of the head
        known |= parts_of(stored_name(own_head(own), present)) & present
    told, refused = sort_out(present - known, architecture, own.tied)
    if refused:
        raise CheckpointError(
            f"{checkpoint.path}: expected only tensors of {architecture.family.architecture}, got also {shorten(refused)}; "
            "is config.json this model's?"
        )
    if told:
        name = architecture.family.architecture
        tell(f"{checkpoint.path}: {shorten(told)}: nothing of {name} reads these tensors; they are left out")


def _missing(names: list[str], checkpoint: Checkpoint | GGUFCheckpoint) -> str:
    """The missing tensors with the way out, where one is seen."""
    index = checkpoint.index if isinstance(checkpoint, Checkpoint) else {}
    shard = next((index[name] for name in names if name in index), None)
    if shard is not None:
        return f"{shorten(names)} (named in the index, in {shard}); download the shard again"
    if names == ["lm_head.weight"]:
        return f'{names[0]}; where the head is the embedding, config.json says "tie_word_embeddings": true'
    return shorten(names)


def _load_prequantized(spec: WeightSpec, source: str, checkpoint: Checkpoint, options: LoadOptions, weights: Weights) -> None:
    tensor, record = read_4bit(source, spec.shape, checkpoint.tensors, checkpoint.read)
    weights.stored_dtypes[spec.name] = np.dtype(record.dtype)
    trained = options.trains(spec)
    if trained or (options.dtype is not None and options.quantization is None):
        array = tensor.dequantize()
        dtype = FLOAT32 if trained else options.dtype or FLOAT32
        _keep(spec, array, dtype, weights)
        weights.stored_dtypes[spec.name] = dtype
        return
    weights.values[spec.name] = tensor
    weights.records[spec.name] = record


def _load_dense(
    spec: WeightSpec, source: str, checkpoint: Checkpoint | GGUFCheckpoint, options: LoadOptions, weights: Weights
) -> None:
    info = checkpoint.tensors[source]
    array = checkpoint.read(source)
    if isinstance(array, GGMLTensor):
        _load_blocks(spec, array, options, weights)
        return
    if info.dtype not in ("F32", "F16", "BF16"):
        raise CheckpointError(f"{spec.file_name}: expected F32, F16 or BF16, got {info.dtype}")
    array = in_order(spec, array)
    if options.quantizes(spec):
        _quantize(spec, array, options, weights)
        return
    _refuse_non_finite(spec, array)
    dtype = FLOAT32 if info.dtype == "F16" else DTYPES[info.dtype]
    dtype = options.dtype or dtype
    trained = options.trains(spec)
    dtype = FLOAT32 if trained else dtype
    _keep(spec, array, dtype, weights)
    weights.stored_dtypes[spec.name] = array.dtype if not trained and options.dtype is None else dtype


def _quantize(spec: WeightSpec, array: NDArray[Any], options: LoadOptions, weights: Weights) -> None:
    assert options.quantization is not None
    try:  # which refuses what is not finite
        weights.values[spec.name] = options.quantization.quantize(array, options.device)
    except ValueError as error:
        _refuse_non_finite(spec, array)
        raise CheckpointError(f"{spec.file_name}: {error}; load it without quantize") from None
    weights.quantized_here.add(spec.name)
    # Blocks have no place in a folder: there they are saved as what they stand for, in float32.
    weights.stored_dtypes[spec.name] = array.dtype if options.quantization.is_4bit else FLOAT32


def _refuse_non_finite(spec: WeightSpec, array: NDArray[Any]) -> None:
    bad = find_non_finite(array)
    if bad:
        raise CheckpointError(
            f"{spec.file_name}: expected finite numbers, got {bad[1]} at index {bad[0]}; the model is damaged"
        )


def _load_blocks(spec: WeightSpec, tensor: GGMLTensor, options: LoadOptions, weights: Weights) -> None:
    """Blocks of a GGUF file, finite as `GGMLTensor` has checked: used where they lie unless something else was asked for."""
    trained = options.trains(spec)
    weights.stored_dtypes[spec.name] = {"F16": np.dtype(np.float16), "BF16": BFLOAT16}.get(tensor.type, FLOAT32)
    if options.quantizes(spec) and quantization_of(tensor) != options.quantization:
        before = tensor.dequantize()
        _quantize(spec, before, options, weights)
        after = weights.values[spec.name]
        if tensor.block_size > 1:
            weights.requantized = weights.requantized or RequantizationError()
            weights.requantized.add(before, after.dequantize())
    elif trained or spec.kind == "vector" or options.dtype is not None:
        dtype = FLOAT32 if trained else options.dtype or FLOAT32
        _keep(spec, tensor.dequantize().reshape(spec.shape), dtype, weights)
        weights.stored_dtypes[spec.name] = dtype
    else:
        weights.values[spec.name] = tensor


def _draw_score(spec: WeightSpec, config: Mapping[str, Any], seed: int, weights: Weights) -> None:
    """The score of a classifier that is made of a language model."""
    _keep(spec, fresh_score(config, spec.shape, seed), FLOAT32, weights)
    weights.stored_dtypes[spec.name] = FLOAT32
    weights.drawn.add(spec.name)


def new_parameters(specs: list[WeightSpec], device: str) -> dict[str, Any]:
    """Parameters of zeros for the tensors that are trained, all in one block of memory."""
    if not specs:
        return {}
    made = Parameter.block([spec.shape for spec in specs], names=[spec.file_name for spec in specs], device=device)
    return {spec.name: parameter for spec, parameter in zip(specs, made, strict=True)}


def _keep(spec: WeightSpec, array: NDArray[Any], dtype: np.dtype[Any], weights: Weights) -> None:
    """Keep a copy in the type that the decoder wants; what is trained has its Parameter already."""
    if spec.name in weights.values:
        set_values(weights.values[spec.name], array)
    elif spec.kind == "vector":  # norms and biases enter float32 arithmetic; rounded first when bfloat16 was asked for
        weights.values[spec.name] = np.array(np.asarray(array, dtype), FLOAT32, order="C")
    else:
        weights.values[spec.name] = np.array(array, dtype, order="C")


def _show_progress(specs: list[WeightSpec], progress: bool | None) -> Iterable[WeightSpec]:
    if in_notebook() and progress is not False:
        return tracked_in_notebook(specs, "loading")
    if not (draws_bars(sys.stderr) if progress is None else progress):
        return specs
    from ..display.progress_bar import tracked

    return tracked(specs, "loading")
