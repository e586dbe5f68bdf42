"""config.json against the tensors of the folder: what the files bear out, and what of it is left aside, in one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..families.architectures import architecture_of
from ..families.config_keys import keys_without_effect
from ..notices import tell
from .folder import Checkpoint
from .prequantized import quant_type_of, refuse_other_quantization
from .tied_head import tied_as_stored


def config_of_files(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return config.json as the files of the folder bear it out; says what of it has no effect.

    Raises
    ------
    CheckpointError
        It is refused by itself: see `architecture_of`.
    """
    architecture = architecture_of(checkpoint.config)
    refuse_other_quantization(checkpoint.config, checkpoint.tensors)
    unread = keys_without_effect(checkpoint.config, architecture.family)
    if unread:
        verb = "this key has" if len(unread) == 1 else "these keys have"
        name = architecture.family.architecture
        tell(f"{checkpoint.path}: config.json: {', '.join(unread)}: {verb} no effect for {name}")
    _tell_quantization(checkpoint)
    own_head = architecture.tied and not tied_as_stored(checkpoint, architecture)
    return dict(checkpoint.config) | ({"tie_word_embeddings": False} if own_head else {})


def _tell_quantization(checkpoint: Checkpoint) -> None:
    tensors, where = checkpoint.tensors, f"{checkpoint.path}: config.json: quantization_config"
    kinds = {name: kind for name in tensors if (kind := quant_type_of(name, tensors))}
    stated = checkpoint.config.get("quantization_config")
    if not kinds:
        if stated:
            tell(f"{where} says that the weights are quantized, the files hold dense ones; they are used as they are")
        return
    if not isinstance(stated, Mapping):
        tell(f"{where} is missing, the files hold weights in 4 bits; each is read as its own record says")
        return
    nested = any(name + ".nested_absmax" in tensors for name in kinds)
    for key, stored in (("bnb_4bit_quant_type", sorted(set(kinds.values()))), ("bnb_4bit_use_double_quant", [nested])):
        given: Any = stated.get(key)
        if given is not None and given not in stored:
            tell(f"{where}.{key} says {given}, the files {stored[0]}; each weight is read as its own record says")
