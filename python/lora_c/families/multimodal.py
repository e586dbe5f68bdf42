"""Models of texts and images, of which the text model is read: its configuration, and the names of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError
from .config_values import agreed
from .labels import CLASSIFIERS, LABEL_KEYS, as_language_model, is_classifier
from .table import FAMILIES, SIZES, Family

_MULTIMODAL = {family.architecture: family for family in FAMILIES if family.text_of}
# Keys that stand outside text_config and hold for the text model.
_SHARED = (
    "architectures", "model_type", "dtype", "torch_dtype", "tie_word_embeddings", "eos_token_id", "bos_token_id",
    "pad_token_id", "quantization_config", "quantization", *LABEL_KEYS,
)  # fmt: skip


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of the text model inside on one level, under the whole model's name; any other as it is.

    Raises
    ------
    CheckpointError
        The two levels contradict each other, or the text model is of another family.
    """
    inner, family = config.get("text_config"), _whole_of(as_language_model(config))
    if not isinstance(inner, dict) or family is None:
        return dict(config)
    text = next(other for other in FAMILIES if other.architecture == family.text_of)
    for key, expected in (("model_type", text.model_type), ("architectures", [text.architecture])):
        if inner.get(key) not in (None, expected):
            raise CheckpointError(f"config.json: text_config.{key}: expected {expected!r}, got {str(inner[key])[:60]!r}")
    for key in sorted((SIZES | text.keys) - {"model_type", "architectures"}):
        inside = inner.get(key) if key in _SHARED or inner.get(key) is not None else text.defaults.get(key, "nothing")
        agreed({f"text_config.{key}": inside, key: config.get(key)}, "transformers reads those of text_config")
    return inner | {key: config[key] for key in _SHARED if config.get(key) is not None}


def _whole_of(config: Mapping[str, Any]) -> Family | None:
    """The family of a model of texts and images, by name or, where there is none, by type."""
    names = config.get("architectures") or []
    if not isinstance(names, list):
        return None
    if not names:
        return next((f for f in _MULTIMODAL.values() if f.model_type == config.get("model_type")), None)
    return next((_MULTIMODAL[str(name)] for name in names if str(name) in _MULTIMODAL), None)


def config_of_text_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of a folder that holds the text model alone; any other as it is."""
    family = _whole_of(as_language_model(config))
    if family is None:
        return dict(config)
    text = next(other for other in FAMILIES if other.architecture == family.text_of)
    name = CLASSIFIERS[text.architecture] if is_classifier(config) else text.architecture
    return dict(config) | {"architectures": [name], "model_type": text.model_type}


def is_left_out(name: str, family: Family) -> bool:
    """Whether a tensor or module belongs to the part that is not read."""
    return name.removeprefix("model.").startswith(family.left_out) if family.left_out else False


def spellings(name: str, family: Family) -> tuple[str, ...]:
    """Return a tensor's or module's name as the family's modules have it now, and as other releases do."""
    for prefix in sorted(family.spellings, key=len, reverse=True):
        if name.startswith(prefix):
            return tuple(other + name.removeprefix(prefix) for other in family.spellings)
    return (name, f"language_model.{name}") if family.spellings and name.startswith("lm_head.") else (name,)
