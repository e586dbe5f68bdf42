"""Models of texts and images, of which the text model is read: its configuration, and the names of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .families import FAMILIES, Family

_MULTIMODAL = {family.architecture: family for family in FAMILIES if family.text_of}
# Keys that stand outside text_config and hold for the text model.
_SHARED = (
    "architectures", "model_type", "dtype", "torch_dtype", "tie_word_embeddings", "eos_token_id", "bos_token_id",
    "pad_token_id", "quantization_config", "quantization",
)  # fmt: skip


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of the text model inside on one level, under the whole model's name; any other as it is."""
    inner = config.get("text_config")
    names = config.get("architectures") or []
    if not isinstance(inner, dict) or not isinstance(names, list) or not any(str(name) in _MULTIMODAL for name in names):
        return dict(config)
    return inner | {key: config[key] for key in _SHARED if config.get(key) is not None}


def config_of_text_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of a folder that holds the text model alone; any other as it is."""
    names = config.get("architectures") or [""]
    family = _MULTIMODAL.get(names[0])
    if family is None:
        return dict(config)
    text = next(other for other in FAMILIES if other.architecture == family.text_of)
    return dict(config) | {"architectures": [text.architecture], "model_type": text.model_type}


def is_left_out(name: str, family: Family) -> bool:
    """Whether a tensor or module belongs to the part that is not read."""
    return name.removeprefix("model.").startswith(family.left_out) if family.left_out else False


def spellings(name: str, family: Family) -> tuple[str, ...]:
    """Return a tensor's or module's name as the family's modules have it now, and as other releases do."""
    for prefix in sorted(family.spellings, key=len, reverse=True):
        if name.startswith(prefix):
            return tuple(other + name.removeprefix(prefix) for other in family.spellings)
    return (name, f"language_model.{name}") if family.text_of and name.startswith("lm_head.") else (name,)
