"""IA3 in files and in models: adapter_config.json of PEFT, which matrices have a vector, and what it multiplies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..configs import IA3Config
from ..errors import AdapterError, ConfigError, shorten
from ..families.architectures import Architecture, WeightSpec
from ..families.labels import SAVED_BY_PEFT
from ..notices import tell
from .data import PREFIX
from .patterns import Matcher
from .targets import find_projections

# PEFT's tables of what is adapted, and of what is scaled before the matrix, where that is not given, by model_type.
_DOWN = ["down_proj"]
DEFAULT_TARGETS: dict[str, list[str]] = {
    "gpt2": ["c_attn", "mlp.c_proj"],
    **dict.fromkeys(("llama", "mistral"), ["k_proj", "v_proj", *_DOWN]),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), ["q_proj", "v_proj", *_DOWN]),
}
DEFAULT_FEEDFORWARD: dict[str, list[str]] = {
    "gpt2": ["mlp.c_proj"],
    **dict.fromkeys(("llama", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), _DOWN),
}
_READ_FIELDS = {
    "target_modules", "feedforward_modules", "exclude_modules", "fan_in_fan_out", "modules_to_save", "init_ia3_weights",
}  # fmt: skip
_HARMLESS = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
}  # fmt: skip


@dataclass(frozen=True)
class VectorTarget:
    """A matrix with a vector: of its input (in,), else of its output (out,)."""

    spec: WeightSpec
    input: bool

    @property
    def key(self) -> str:
        """The tensor's name in PEFT's file."""
        return f"{PREFIX}{self.spec.module}.ia3_l"

    @property
    def size(self) -> int:
        """Elements of the vector."""
        return self.spec.shape[1 if self.input else 0]

    @property
    def shape(self) -> tuple[int, int]:
        """The tensor's shape in PEFT's file."""
        return (1, self.size) if self.input else (self.size, 1)


def find_vectors(config: IA3Config, architecture: Architecture, strict: bool = True) -> list[VectorTarget]:
    """Return the matrices that a configuration gives vectors.

    Parameters
    ----------
    strict : bool
        Also refuse what matches nothing.

    Raises
    ------
    AdapterError
        Nothing matches, or a name is another module.
    """
    targets = target_names(config, architecture)
    feedforward, matcher = feedforward_names(config, architecture), Matcher()
    found = [
        VectorTarget(spec, _is_feedforward(spec.module, feedforward, matcher))
        for spec in find_projections(config, targets, architecture, strict)
    ]
    given = config.feedforward_modules if isinstance(config.feedforward_modules, list) else []
    unused = next((name for name in given if not any(t.spec.module.endswith(name) for t in found)), None)
    if strict and unused is not None:
        raise AdapterError(f"feedforward_modules: expected names of adapted modules, got {unused!r}; leave it out")
    return found


def _is_feedforward(module: str, names: str | list[str], matcher: Matcher) -> bool:
    if isinstance(names, str):
        return matcher.fullmatch("feedforward_modules", names, module) is not None
    return any(module.endswith(name) for name in names)


def target_names(config: IA3Config, architecture: Architecture) -> str | list[str]:
    """`target_modules`, or PEFT's default for the family where it is None."""
    return _given(config.target_modules, "target_modules", DEFAULT_TARGETS, architecture, "names or 'all-linear'")


def feedforward_names(config: IA3Config, architecture: Architecture) -> str | list[str]:
    """`feedforward_modules`, or PEFT's default for the family where it is None."""
    way_out = "names of target_modules, or [] for none"
    return _given(config.feedforward_modules, "feedforward_modules", DEFAULT_FEEDFORWARD, architecture, way_out)


def _given(value: Any, field: str, defaults: Mapping[str, list[str]], architecture: Architecture, way_out: str) -> Any:
    if value is not None:
        return value
    kind = architecture.family.model_type
    if kind not in defaults:
        raise AdapterError(f"{field}: expected names for {kind} (PEFT has no default for it), got None; give {way_out}")
    return defaults[kind]


def resolved(config: IA3Config, architecture: Architecture) -> IA3Config:
    """Return the configuration as PEFT writes it: with names in the place of its defaults and of "all-linear"."""
    targets = find_vectors(config, architecture, strict=False)
    names: Any = target_names(config, architecture)
    if names == "all-linear":
        names = sorted({target.spec.module.rpartition(".")[2] for target in targets})
    feedforward = feedforward_names(config, architecture)
    if isinstance(feedforward, list):
        feedforward = [name for name in feedforward if any(target.spec.module.endswith(name) for target in targets)]
    if isinstance(names, list):  # PEFT wants one list to hold the other
        names = names + [name for name in feedforward if name not in names] if isinstance(feedforward, list) else names
    update = {
        "target_modules": names if isinstance(names, str) else list(names),
        "feedforward_modules": feedforward,
        "fan_in_fan_out": any(target.spec.transposed for target in targets),
    }
    return config.model_copy(update=update)


def vector_shapes(config: IA3Config, architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The tensors of PEFT's file: full name to shape."""
    return {target.key: target.shape for target in find_vectors(config, architecture, strict=False)}


def read_ia3_config(values: Mapping[str, Any], where: str) -> IA3Config:
    """Turn PEFT's adapter_config.json into a configuration.

    Raises
    ------
    AdapterError
        A field has a value that is not supported.
    """
    unknown = [
        key for key, value in values.items() if key not in _READ_FIELDS | _HARMLESS and value not in (None, False, [], {})
    ]
    if unknown:
        tell(f"{where}: {shorten(unknown)}: no effect, as PEFT leaves out what it does not know")
    given = {key: values[key] for key in _READ_FIELDS if values.get(key) is not None}
    for key in ("exclude_modules", "modules_to_save"):
        if given.get(key) in ([], ""):
            del given[key]
    try:
        return IA3Config(**given)
    except ConfigError as error:
        raise AdapterError(f"{where}: {error}") from None


def ia3_file(config: IA3Config, modules: Iterable[str], base_model: str | None) -> dict[str, Any]:
    """Return PEFT's adapter_config.json of a configuration that is `resolved`."""
    task = "SEQ_CLS" if SAVED_BY_PEFT[1] in (config.modules_to_save or []) else "CAUSAL_LM"
    return {
        "peft_type": "IA3", "task_type": task, "auto_mapping": None, "base_model_name_or_path": base_model,
        "revision": None, "inference_mode": True, "target_modules": config.target_modules,
        "feedforward_modules": config.feedforward_modules, "exclude_modules": config.exclude_modules,
        "fan_in_fan_out": config.fan_in_fan_out, "modules_to_save": config.modules_to_save,
        "init_ia3_weights": config.init_ia3_weights,
    }  # fmt: skip
