"""Which parts of a model a configuration means, by PEFT's rules of matching."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..configs import BottleneckConfig, IA3Config, LoraConfig
from ..errors import AdapterError
from ..families.architectures import Architecture, WeightSpec
from .data import all_specs
from .patterns import Matcher
from .unused import refuse_unused_options

# PEFT's table of what is adapted when target_modules is not given, by model_type; it has no row for other families.
DEFAULT_TARGETS: dict[str, list[str]] = {
    "gpt2": ["c_attn"],
    **dict.fromkeys(("llama", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), ["q_proj", "v_proj"]),
}


_ANY_NAME = "[^.]*"
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
ADAPTED_KINDS = ("projection", "embedding", "head")


@dataclass(frozen=True)
class AdapterTarget:
    """One adapted matrix with the rank and scale that the configuration gives it."""

    spec: WeightSpec
    r: int
    scale: float


def find_targets(config: LoraConfig, architecture: Architecture, strict: bool = True) -> list[AdapterTarget]:
    """Return the matrices that a configuration adapts: projections, and the embedding or the head where they are named.

    Parameters
    ----------
    strict : bool
        Also refuse a listed name that matches nothing (a typing error in a configuration; in a file PEFT allows it).

    Raises
    ------
    AdapterError
        Nothing matches, or a name is another module.
    """
    specs = all_specs(architecture)
    projections = [spec for spec in specs if spec.kind == "projection"]
    candidates = [spec for spec in specs if spec.kind in ADAPTED_KINDS]
    known = sorted({spec.module.rpartition(".")[2] for spec in candidates})
    names = target_names(config, architecture)
    matcher = Matcher()
    found = projections if names == "all-linear" else [s for s in candidates if _matches(s.module, names, matcher)]
    _refuse_other_modules(names, architecture, matcher)
    chosen = [s for s in found if _in_layers(s.module, config, matcher) and not _left_out(s.module, config, matcher)]
    targets = [_target_of(spec, config, matcher) for spec in chosen]
    if strict and targets:
        refuse_unused_options(config, (target.spec.module for target in targets), architecture)
    if strict and isinstance(names, list):
        for name in names:
            if not any(_matches(spec.module, [name], matcher) for spec in candidates):
                raise AdapterError(f"target_modules: expected names among {', '.join(known)}, got {name!r}")
    _refuse_more_for_globals(targets, config)
    if not targets:
        meant = _as_list(names, candidates)
        raise AdapterError(f"target_modules: expected to match one of {', '.join(known)} at least once, got {names!r}{meant}")
    return targets


def find_projections(
    config: IA3Config, names: str | list[str], architecture: Architecture, strict: bool = True
) -> list[WeightSpec]:
    """Return the matrices of layers that names mean, without those that the configuration excludes or saves whole.

    Parameters
    ----------
    strict : bool
        Also refuse a listed name or an exclusion that matches nothing.

    Raises
    ------
    AdapterError
        Nothing matches, or a name is another module.
    """
    specs, matcher = all_specs(architecture), Matcher()
    projections = [spec for spec in specs if spec.kind == "projection"]
    known = sorted({spec.module.rpartition(".")[2] for spec in projections})
    if names != "all-linear":
        other = next(
            (s.module for s in specs if s.kind not in ("projection", "vector") and _matches(s.module, names, matcher)), None
        )
        if other is not None:
            raise AdapterError(f"target_modules: expected matrices of layers, got {other!r}; leave it out")
    if strict and isinstance(names, list):
        for name in names:
            if not any(_matches(spec.module, [name], matcher) for spec in projections):
                raise AdapterError(f"target_modules: expected names among {', '.join(known)}, got {name!r}")
    found = projections if names == "all-linear" else [s for s in projections if _matches(s.module, names, matcher)]
    chosen = [spec for spec in found if not _left_out(spec.module, config, matcher)]
    if not chosen:
        meant = _as_list(names, projections)
        raise AdapterError(f"target_modules: expected to match one of {', '.join(known)} at least once, got {names!r}{meant}")
    if strict:
        refuse_unused_options(config, (spec.module for spec in chosen), architecture)
    return chosen


def _as_list(names: str | list[str], candidates: Iterable[WeightSpec]) -> str:
    """What to say where a text, which must match whole paths, is the name of modules."""
    given = [name.strip() for name in names.split(",")] if isinstance(names, str) else []
    is_name = given and all(any(_matches(spec.module, [name], Matcher()) for spec in candidates) for name in given)
    return f", a regular expression for whole paths; did you mean {given!r}?" if is_name else ""


def target_names(config: LoraConfig, architecture: Architecture) -> str | list[str]:
    """`target_modules`, or PEFT's default for the family where it is None."""
    if config.target_modules is not None:
        return config.target_modules
    kind = architecture.family.model_type
    if kind not in DEFAULT_TARGETS:
        raise AdapterError(
            f"target_modules: expected names for {kind} (PEFT has no default for it), got None; give 'all-linear'"
        )
    return DEFAULT_TARGETS[kind]


def _target_of(spec: WeightSpec, config: LoraConfig, matcher: Matcher) -> AdapterTarget:
    """The rank and the scale of one matrix: patterns first, then the general values."""
    r = int(_by_pattern("rank_pattern", config.rank_pattern, spec.module, config.r, matcher))
    alpha = float(_by_pattern("alpha_pattern", config.alpha_pattern, spec.module, config.lora_alpha, matcher))
    scale = alpha / (math.sqrt(r) if config.use_rslora else r)
    if not abs(scale) <= _MAX_FLOAT32:
        raise AdapterError(
            f"lora_alpha: expected a scale (lora_alpha by the rank) that float32 can hold, got {scale:g} for {spec.module}; "
            "correct lora_alpha or alpha_pattern"
        )
    return AdapterTarget(spec, r, scale)


def describe_targets(names: Iterable[str], architecture: Architecture) -> list[str]:
    """Return target_modules for these matrices (decoder names): last names where they mean nothing else, else whole paths."""
    projections = [spec for spec in all_specs(architecture) if spec.kind in ADAPTED_KINDS]
    chosen = set(names)
    last = sorted({spec.module.rpartition(".")[2] for spec in projections if spec.name in chosen})
    meant = {spec.name for spec in projections if _matches(spec.module, last, Matcher())}
    return last if meant == chosen else [spec.module for spec in projections if spec.name in chosen]


def find_saved(
    config: LoraConfig | IA3Config | BottleneckConfig, architecture: Architecture, targets: Iterable[AdapterTarget]
) -> list[WeightSpec]:
    """Return the tensors that are trained whole: modules_to_save, and the biases that `bias` names.

    A name of modules_to_save matches the end of a module's path, without regard to dots, as in PEFT: "norm" means every
    norm. A module that holds others ("mlp") means all of them.

    Raises
    ------
    AdapterError
        None of the modules_to_save exists.
    """
    specs = all_specs(architecture)
    names = config.modules_to_save or []
    chosen = [spec for spec in specs if _is_saved(spec.module, names)]
    if names and not chosen:
        known = sorted({spec.module.rpartition(".")[2] for spec in specs})
        raise AdapterError(f"modules_to_save: expected to match one of {', '.join(known)}, got {shorten_names(names)}")
    adapted = {target.spec.module for target in targets}
    both = next((spec.module for spec in chosen if spec.module in adapted), None)
    if both is not None:
        raise AdapterError(
            f"modules_to_save: expected modules without an adapter, got {both!r}, which target_modules adapts too"
        )
    bias = getattr(config, "bias", "none")  # of LoRA alone
    biases = [
        spec
        for spec in specs
        if spec.file_name.endswith(".bias")
        and spec not in chosen
        and (bias == "all" or (bias == "lora_only" and spec.module in adapted))
    ]
    return chosen + biases


def find_token_ids(config: LoraConfig, architecture: Architecture) -> list[int] | None:
    """Return the token ids of `trainable_token_indices`.

    Raises
    ------
    AdapterError
        It names another module than the embedding, an id occurs twice or is outside the vocabulary, or the embedding is
        trained whole.
    """
    given = config.trainable_token_indices
    if not given:
        return None
    embedding = next(spec for spec in architecture.weights() if spec.kind == "embedding")
    if isinstance(given, dict):
        other = next((name for name in given if not _matches(embedding.module, [name], Matcher())), None)
        if other is not None or len(given) > 1:
            raise AdapterError(
                f"trainable_token_indices: expected only {embedding.module.rpartition('.')[2]!r}, got {shorten_names(given)}; "
                "rows of other modules are not supported"
            )
        given = next(iter(given.values()))
    vocab = embedding.shape[0]
    bad = next((i for i in given if not 0 <= i < vocab), None)
    if bad is not None or len(set(given)) != len(given):
        got = f"{bad}" if bad is not None else "one of them twice"
        raise AdapterError(f"trainable_token_indices: expected distinct ids from 0 to {vocab - 1}, got {got}")
    if any(_is_saved(module, config.modules_to_save or []) for module in (embedding.module, "lm_head")):
        raise AdapterError(
            "trainable_token_indices: expected the embedding and the head not in modules_to_save, got both; drop one"
        )
    return list(given)


def shorten_names(names: Iterable[str]) -> str:
    """The names as a list to read."""
    return ", ".join(repr(name)[:80] for name in names)


def _is_saved(module: str, names: list[str]) -> bool:
    return any(path.endswith(name) for path in _paths(module) for name in names)


def _paths(module: str) -> Iterator[str]:
    """The module and the modules that hold it."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def _matches(module: str, names: str | Iterable[str], matcher: Matcher, field: str = "target_modules") -> bool:
    """PEFT's rule: a string must match the whole path as a regular expression, list entries match as suffixes."""
    if isinstance(names, str):
        return matcher.fullmatch(field, names, module) is not None
    return any(module == name or module.endswith("." + name) for name in names)


def _refuse_other_modules(names: str | list[str], architecture: Architecture, matcher: Matcher) -> None:
    """LoRA on learned positions: PEFT can, this decoder cannot, and leaving it out would change the result."""
    if names == "all-linear":
        return
    for spec in all_specs(architecture):
        if spec.kind == "positions" and _matches(spec.module, names, matcher):
            raise AdapterError(
                f"target_modules: expected projections, the embedding or the head, got {spec.module!r}; train it whole with "
                "modules_to_save, or merge such an adapter with PEFT (merge_and_unload) and load the merged model"
            )


def _refuse_more_for_globals(targets: Iterable[AdapterTarget], config: LoraConfig) -> None:
    """What the embedding and the head cannot have besides A and B."""
    for target in targets:
        if target.spec.kind == "projection":
            continue
        given = {
            "use_dora": config.use_dora,
            "init_lora_weights": str(config.init_lora_weights).startswith(("pissa", "olora", "loftq", "orthogonal")),
            "trainable_token_indices": bool(config.trainable_token_indices),
        }
        for name, is_set in given.items():
            if is_set:
                raise AdapterError(
                    f"target_modules: expected {name} unset with an adapter on {target.spec.module!r}, got "
                    f"{getattr(config, name)!r}; this is not supported"
                )


def _left_out(module: str, config: LoraConfig | IA3Config, matcher: Matcher) -> bool:
    if config.exclude_modules and _matches(module, config.exclude_modules, matcher, "exclude_modules"):
        return True
    whole = config.modules_to_save or []
    return any(matcher.match("modules_to_save", name, module, r"(^|.*\.)", r"($|\..*)") for name in whole)


def _in_layers(module: str, config: LoraConfig, matcher: Matcher) -> bool:
    wanted = config.layers_to_transform
    if wanted is None or wanted == []:
        return True
    names = config.layers_pattern or [_ANY_NAME]
    for name in [names] if isinstance(names, str) else names:
        found = matcher.match("layers_pattern", name, module, r"(?:^|.*?\.)", r"\.(\d+)\.")
        if found:
            return int(found.groups()[-1]) in ([wanted] if isinstance(wanted, int) else wanted)
    return False


def _by_pattern(field: str, table: Mapping[str, Any], module: str, default: Any, matcher: Matcher) -> Any:
    for pattern, value in table.items():
        if matcher.match(field, pattern, module, r"(.*\.)?(", ")$"):
            return value
    return default
