"""One base for all ranks of a node: one of them reads and quantizes it, and all map the same pages."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import GGMLTensor, NF4Tensor
from ..comm.communicator import Communicator
from ..notices import tell
from ..weights.kinds import Weights

_ALIGN = 64  # of every array, and what can be read behind it
_NF4_PARTS = ("codes", "absmax", "absmax_codes", "nested_absmax", "nested_map", "lut")


def share_on_node(comm: Communicator, load: Callable[[], Weights]) -> Weights:
    """Load the weights once on each node; every rank calls this. Where pages cannot be shared each one loads its own.

    The pages belong to a file without a name, which is gone with the last rank, however that ends, and which no limit of
    /dev/shm counts.
    """
    is_alone, leads = comm.local_size == 1, comm.local_rank == 0
    own, plan, path, handle = load() if leads else None, None, "", -1
    if own is not None and not is_alone:
        if hasattr(os, "memfd_create"):  # Linux
            with suppress(OSError):
                handle = os.memfd_create("lora-c base")
                plan, path = _written(own, handle), f"/proc/{os.getpid()}/fd/{handle}"
        own = None  # what is written was let go of
    plan, path = comm.broadcast((plan, path), local=True)
    mapped = _mapped(plan, path) if plan is not None else None
    if any(comm.all_gather(mapped is None and not is_alone)):
        tell("the ranks of a node cannot share the pages of one base: each has its own copy")
    if handle >= 0:
        os.close(handle)  # every rank has mapped it
    if mapped is not None:
        return mapped
    return own if own is not None else load()


def _written(weights: Weights, handle: int) -> Weights:
    """The same weights with places in a file for arrays; each array is let go of when it is written."""
    end = 0
    places: dict[str, Any] = {}
    for name in list(weights.values):
        options, arrays = _taken_apart(weights.values.pop(name))
        written = {}
        for part, array in arrays.items():
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            _write(handle, flat, end)
            written[part] = (end, array.dtype, array.shape)
            end += -(-flat.size // _ALIGN) * _ALIGN + _ALIGN
        places[name] = (options, written)
    os.ftruncate(handle, end + _ALIGN)
    return replace(weights, values=places)


def _write(handle: int, flat: NDArray[np.uint8], at: int) -> None:
    view = memoryview(flat)  # type: ignore[arg-type]
    while len(view):
        done = os.pwrite(handle, view[: 1 << 30], at)
        view, at = view[done:], at + done


def _mapped(plan: Weights, path: str) -> Weights | None:
    """The weights over the pages of a file; None where this process may not open it."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        pages = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
    except OSError:
        return None
    finally:
        os.close(handle)
    values = {}
    for name, (options, written) in plan.values.items():
        arrays = {
            part: np.frombuffer(pages, dtype, int(np.prod(shape)), place).reshape(shape)
            for part, (place, dtype, shape) in written.items()
        }
        values[name] = _put_together(options, arrays)
    return replace(plan, values=values)


def _taken_apart(weight: Any) -> tuple[dict[str, Any] | None, dict[str, NDArray[Any]]]:
    """Options of a weight that is more than an array, and its arrays."""
    if isinstance(weight, NF4Tensor):
        options = {name: getattr(weight, name) for name in ("block_size", "quant_type", "shape")}
        if weight.double_quant:
            options |= {"nested_offset": weight.nested_offset, "nested_block_size": weight.nested_block_size}
        return options, {name: part for name in _NF4_PARTS if (part := getattr(weight, name)) is not None}
    if isinstance(weight, GGMLTensor):
        return {"type": weight.type, "shape": weight.shape}, {"blocks": weight.blocks}
    return None, {"array": weight}


def _put_together(options: dict[str, Any] | None, arrays: dict[str, NDArray[Any]]) -> Any:
    if options is None:
        return arrays["array"]
    if "type" in options:
        return GGMLTensor.from_blocks(arrays["blocks"], options["shape"], options["type"])
    rest: dict[str, Any] = {**arrays, **options}
    return NF4Tensor.from_parts(rest.pop("codes"), rest.pop("shape"), **rest, borrow_codes=True)
