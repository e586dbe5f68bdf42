"""Digests of what a training run starts from, so that a resumed run can tell whether it is still the same.

* data: the ids and the loss mask of every sample, in order;
* model: the decoder's settings (layers, norms, RoPE tables, ...) and the bytes of every weight that is not trained, with those
  that the adapter puts in the place of the model's own (PiSSA, OLoRA, LoftQ). What is trained is in the checkpoint;
* base: the settings and the stored tensors of a model folder or GGUF file, of each its name, type, shape and three pieces. It
  is quick, and the same however the model is loaded: an adapter can tell whether it is put on the base it was trained on;
* tokenizer: what tokenizer.json would say, and the chat templates.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core import GGMLTensor, NF4Tensor, Parameter
from ..files.system import BINARY, read_at

if TYPE_CHECKING:
    from ..data import Dataset
    from ..model.model import Model
    from ..text.tokenizer import Tokenizer

_SIZE = 16
_PIECE = 4096  # bytes that `base_digest` reads at the begin, in the middle and at the end of a tensor
_NF4_PARTS = ("codes", "absmax", "absmax_codes", "nested_absmax", "nested_map", "lut")


def data_digest(data: Dataset) -> str:
    """The digest of a data set as it is trained on."""
    digest = blake2b(digest_size=_SIZE)
    for i in range(len(data)):
        sample = data[i]
        digest.update(len(sample).to_bytes(8, "little"))
        digest.update(bytes_of(np.asarray(sample.input_ids, np.int32)))
        digest.update(bytes_of(np.asarray(sample.loss_mask, np.float32)))
        if sample.label is not None:
            digest.update(bytes_of(np.atleast_1d(np.asarray(sample.label, np.float64))))
    return digest.hexdigest()


def model_digest(model: Model) -> str:
    """The digest of what a model is, apart from what is trained of it. The weights are read once, by all cores."""
    digest = blake2b(digest_size=_SIZE)
    digest.update(json.dumps(model.architecture.decoder_kwargs, sort_keys=True, default=_plain).encode())
    weights = model.weights | (model.adapter.base if model.adapter is not None else {})
    frozen = {name: weight for name, weight in sorted(weights.items()) if not _is_trained(weight)}
    held = [] if model.adapter is None else model.adapter.parameters()  # of a stack, some may be frozen
    frozen |= {f"adapter {parameter.name}": parameter for parameter in held if not parameter.requires_grad}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, value in zip(frozen, pool.map(_weight_digest, frozen.values()), strict=True):
            digest.update(name.encode() + b"\0" + value)
    return digest.hexdigest()


def base_digest(path: str | os.PathLike[str]) -> str:
    """The digest of a stored model, of a sample of its bytes.

    Raises
    ------
    CheckpointError
        There is no model.
    """
    from ..checkpoints.folder import Checkpoint
    from ..families.architectures import architecture_of
    from ..gguf.checkpoint import GGUFCheckpoint
    from ..gguf.reader import is_gguf

    digest = blake2b(digest_size=_SIZE)
    with GGUFCheckpoint(path) if is_gguf(path) else Checkpoint(path) as checkpoint:
        settings = architecture_of(checkpoint.config).decoder_kwargs
        digest.update(json.dumps(settings, sort_keys=True, default=_plain).encode())
        for name, info in sorted(checkpoint.tensors.items()):
            extent = checkpoint.extent(name)
            digest.update(f"\0{name}\0{info.dtype}{info.shape}".encode())
            digest.update(_pieces(extent.path, extent.start, extent.end))
    return digest.hexdigest()


def _pieces(path: os.PathLike[str], start: int, end: int) -> bytes:
    handle = os.open(path, os.O_RDONLY | BINARY)
    try:
        places = sorted({start, max(start, (start + end - _PIECE) // 2), max(start, end - _PIECE)})
        return b"".join(read_at(handle, min(_PIECE, end - place), place) for place in places)
    finally:
        os.close(handle)


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """The digest of a tokenizer, wherever it was read from."""
    parts = [tokenizer.backend.to_str(), json.dumps(tokenizer.special_tokens, sort_keys=True, default=str)]
    parts += [f"{name}\0{text}" for name, text in sorted(tokenizer.templates.items())]
    return blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=_SIZE).hexdigest()


def _is_trained(weight: Any) -> bool:
    return isinstance(weight, Parameter) and weight.requires_grad


def _weight_digest(weight: Any) -> bytes:
    digest = blake2b(digest_size=_SIZE)
    for part in _arrays(weight):
        digest.update(f"{part.dtype}{part.shape}".encode())
        digest.update(bytes_of(part))
    return digest.digest()


def bytes_of(array: NDArray[Any]) -> memoryview:
    """The bytes of an array, without a copy where they lie one behind the other."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def _arrays(weight: Any) -> Iterator[NDArray[Any]]:
    """What the weight consists of."""
    if isinstance(weight, NF4Tensor):
        parts = (getattr(weight, name) for name in _NF4_PARTS)
        yield from (part for part in parts if part is not None)
        yield np.array([weight.nested_offset, weight.block_size, weight.nested_block_size], np.float64)
    elif isinstance(weight, GGMLTensor):
        yield weight.blocks
    else:
        yield weight.data if isinstance(weight, Parameter) else weight


def _plain(value: Any) -> Any:
    """What JSON has no type for; arrays by their bytes."""
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), blake2b(bytes_of(value), digest_size=_SIZE).hexdigest()]
    return value.item() if isinstance(value, np.generic) else str(value)
