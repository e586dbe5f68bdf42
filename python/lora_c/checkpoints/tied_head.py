"""Whether a model that calls its head tied to the embedding brings another head along."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..families.architectures import Architecture, WeightSpec
from ..notices import tell
from .folder import Checkpoint
from .prequantized import quant_type_of

_FLOATS = ("F64", "F32", "F16", "BF16")
_ROWS = 1024  # compared at a time


def tied_as_stored(checkpoint: Checkpoint, architecture: Architecture) -> bool:
    """Whether the head is the embedding, as the tensors have it; says in one line where config.json says otherwise.

    A head in the file that is the embedding once more stays tied. One that differs is the model's head, as transformers has
    it: merges of tied models leave folders like that.
    """
    head = _head_in_file(checkpoint, architecture) if architecture.tied else None
    if head is None or _same_values(checkpoint, _name(checkpoint, architecture, "embedding"), head):
        return architecture.tied
    tell(
        f"{checkpoint.path}: config.json says that the head is the embedding (tie_word_embeddings true), the file has another "
        f"in {head}; the one in the file is used"
    )
    return False


def stored_name(spec: WeightSpec, names: Any) -> str:
    """The name of a tensor in the file. Folders saved from the bare model, such as GPT-2's own, leave out the first part."""
    bare = spec.file_name.partition(".")[2]
    spellings = (spec.file_name, *spec.aliases, *((bare,) if spec.kind != "head" else ()))
    return next((name for name in spellings if name in names), spec.file_name)


def untied(architecture: Architecture) -> Architecture:
    """The same architecture with a head of its own."""
    return replace(architecture, decoder_kwargs={**architecture.decoder_kwargs, "tie_word_embeddings": False})


def head_names(architecture: Architecture) -> tuple[str, ...]:
    """How files spell the head, whether the architecture has one of its own or not."""
    head = own_head(architecture)
    return head.file_name, *head.aliases


def own_head(architecture: Architecture) -> WeightSpec:
    """The head of an architecture, or the one that it would have if it were not the embedding."""
    return next(spec for spec in untied(architecture).weights() if spec.kind == "head")


def _head_in_file(checkpoint: Checkpoint, architecture: Architecture) -> str | None:
    embedding = _name(checkpoint, architecture, "embedding")
    if embedding not in checkpoint.tensors:  # only the head was written: it is the embedding, too
        return None
    return next((name for name in head_names(architecture) if name in checkpoint.tensors), None)


def _name(checkpoint: Checkpoint, architecture: Architecture, kind: str) -> str:
    return stored_name(next(spec for spec in architecture.weights() if spec.kind == kind), checkpoint.tensors)


def _same_values(checkpoint: Checkpoint, one: str, other: str) -> bool:
    infos = checkpoint.tensors[one], checkpoint.tensors[other]
    if any(quant_type_of(name, checkpoint.tensors) for name in (one, other)):
        return False
    if infos[0].shape != infos[1].shape or len(infos[0].shape) != 2 or any(info.dtype not in _FLOATS for info in infos):
        return False
    arrays = checkpoint.read(one), checkpoint.read(other)
    for start in range(0, infos[0].shape[0], _ROWS):
        rows: list[NDArray[Any]] = [array[start : start + _ROWS] for array in arrays]
        if rows[0].dtype == rows[1].dtype and rows[0].tobytes() == rows[1].tobytes():
            continue
        if not np.array_equal(rows[0].astype(np.float64), rows[1].astype(np.float64)):
            return False
    return True
