"""A LoRA adapter from its arrays: its parameters, in one block of memory."""

from __future__ import annotations

from collections.abc import Mapping

from .._core import Parameter
from ..families.architectures import Architecture, WeightSpec
from ..weights.parameter_values import is_meta, set_values
from .adapter import Adapter, LoadedAdapter, TrainedTokens
from .data import F32, AdapterArrays, specs_by_name
from .peft_format import PREFIX


def load_arrays(
    arrays: AdapterArrays, architecture: Architecture, embedding: F32 | None, trainable: bool, device: str
) -> Adapter:
    """Make parameters of an adapter's arrays.

    Parameters
    ----------
    embedding : array or None
        The base's embedding, where the adapter trains rows of it.
    device : str
        Where the parameters lie.
    """
    specs = specs_by_name(architecture)
    rows = arrays.tokens.rows if arrays.tokens is not None and embedding is not None else None
    made = in_one_block(_named_arrays(arrays, rows, specs), trainable, device)
    layers = {}
    for name, matrix in arrays.matrices.items():
        prefix = f"{PREFIX}{specs[name].module}."
        magnitude = made.get(f"{prefix}lora_magnitude_vector")
        layers[name] = LoadedAdapter(
            specs[name].module, made[f"{prefix}lora_A.weight"], made[f"{prefix}lora_B.weight"], matrix.scale, magnitude
        )
    saved = {name: made[PREFIX + specs[name].file_name] for name in arrays.saved}
    tokens = None
    if arrays.tokens is not None and embedding is not None:
        whole = in_one_block({"embed_tokens": embedding}, trainable, device)["embed_tokens"]
        tokens = TrainedTokens(arrays.tokens.ids, made[_key_of_rows(specs)], whole)
        if not is_meta(device):
            tokens.whole()
    base = {name: read() for name, read in arrays.residual_base.items()}
    return Adapter(arrays.config, layers, saved, tokens, base)


def _key_of_rows(specs: Mapping[str, WeightSpec]) -> str:
    return f"{PREFIX}{specs['embed_tokens'].module}.trainable_tokens_delta"


def _named_arrays(arrays: AdapterArrays, rows: F32 | None, specs: Mapping[str, WeightSpec]) -> dict[str, F32]:
    """The arrays of an adapter by the names of a file, in the order of `Adapter.parameters`."""
    named: dict[str, F32] = {}
    for name, matrix in arrays.matrices.items():
        parts = {"lora_A.weight": matrix.A, "lora_B.weight": matrix.B, "lora_magnitude_vector": matrix.magnitude}
        named |= {f"{PREFIX}{specs[name].module}.{part}": array for part, array in parts.items() if array is not None}
    named |= {PREFIX + specs[name].file_name: array for name, array in arrays.saved.items()}
    return named | ({_key_of_rows(specs): rows} if rows is not None else {})


def load_tensors(
    arrays: AdapterArrays, architecture: Architecture, trainable: bool, device: str
) -> tuple[dict[str, Parameter], dict[str, Parameter]]:
    """Make parameters of an adapter without low-rank matrices: its tensors by their names in files, and those of the base
    that are trained whole by decoder names."""
    specs = specs_by_name(architecture)
    keys = {name: PREFIX + specs[name].file_name for name in arrays.saved}
    made = in_one_block({**arrays.tensors, **{keys[name]: array for name, array in arrays.saved.items()}}, trainable, device)
    return made, {name: made[key] for name, key in keys.items()}


def in_one_block(named: Mapping[str, F32], trainable: bool, device: str) -> dict[str, Parameter]:
    """Return a Parameter of each array, all in one block of memory."""
    if not named:
        return {}
    shapes = [array.shape for array in named.values()]
    made = Parameter.block(shapes, names=list(named), requires_grad=trainable, device=device)
    for parameter, array in zip(made, named.values(), strict=True):
        set_values(parameter, array)
    return dict(zip(named, made, strict=True))
