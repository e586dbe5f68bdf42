"""Tensors of a checkpoint that a model does not need: which are nothing, which are named, which show another model.

transformers leaves out whatever its class does not have and says so. So it is here, but for tensors within the part that is
computed (a bias, a norm, experts): leaving those out would give another function than the file was trained as.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..families.architectures import Architecture
from ..families.multimodal import is_left_out
from .tied_head import head_names, untied

# Constants that older releases of transformers wrote along, and what quantizers leave beside weights that are dense again.
_BUFFERS = (".rotary_emb.inv_freq", ".attn.masked_bias")
_MASKS = (".attn.bias",)
_LEFTOVERS = (
    ".k_scale", ".v_scale", ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map",
)  # fmt: skip
# Parts for images and sounds, for other tasks, and for speculation: nothing of them enters the next token's logits here.
_OTHER_PARTS = frozenset({
    "vision_tower", "vision_model", "vision_embed_tokens", "visual", "multi_modal_projector", "mm_projector", "audio_tower",
    "audio_model", "embed_vision", "embed_audio", "image_newline", "speech_encoder", "score", "classifier", "v_head", "mtp",
})  # fmt: skip
_IN_A_LAYER = re.compile(r"(^|\.)(layers?|h|blocks?)\.\d+\.")
_OTHER_NAMES_OF_NEEDED = ("lm_head", "embed_out", "embed_tokens", "embed_positions", "wte", "wpe")


def sort_out(extra: Iterable[str], architecture: Architecture, tied: bool) -> tuple[list[str], list[str]]:
    """Return which of the tensors beyond the needed ones are to be named, and which the model cannot do without.

    Parameters
    ----------
    tied : bool
        Whether the file's head is its embedding: a copy of it is nothing.
    """
    buffers = _BUFFERS + (_MASKS if architecture.family.transposed else ())
    copies = head_names(architecture) if tied else ()
    specs = untied(architecture).weights()
    modules = {name.rpartition(".")[0] for spec in specs for name in (spec.file_name, *spec.aliases)}
    modules |= {module.partition(".")[2] for module in modules} - {""}
    told: list[str] = []
    refused: list[str] = []
    for name in sorted(extra):
        if name.endswith(buffers) or name in copies or is_left_out(name, architecture.family):
            continue
        (told if _is_apart(name, architecture, modules) else refused).append(name)
    return told, refused


def _is_apart(name: str, architecture: Architecture, modules: set[str]) -> bool:
    parts = name.split(".")
    if name.endswith(_LEFTOVERS) or not _OTHER_PARTS.isdisjoint(parts):
        return True
    root = architecture.family.layers.partition(".")[0] + "."
    inside = name.startswith(root) or _IN_A_LAYER.search(name) is not None
    return not inside and name.rpartition(".")[0] not in modules and not any(part in _OTHER_NAMES_OF_NEEDED for part in parts)
