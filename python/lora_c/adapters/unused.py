"""Options of a fresh adapter that name what the model has not, and would be without effect."""

from __future__ import annotations

from collections.abc import Iterable

from ..configs import IA3Config, LoraConfig
from ..errors import AdapterError
from ..families.architectures import Architecture
from .data import all_specs
from .patterns import Matcher


def refuse_unused_options(config: LoraConfig | IA3Config, adapted: Iterable[str], architecture: Architecture) -> None:
    """Refuse patterns, exclusions and layers that match nothing; `adapted` are the paths of the adapted modules.

    Raises
    ------
    AdapterError
        Naming the option and the entry of it that matches nothing.
    """
    modules, matcher = list(adapted), Matcher()
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, name, ()):
            if not any(matcher.match(name, pattern, module, r"(.*\.)?(", ")$") for module in modules):
                raise AdapterError(f"{name}: expected patterns of adapted modules, such as {modules[0]!r}, got {pattern!r}")
    every = {spec.module for spec in all_specs(architecture)}
    excluded = config.exclude_modules or []
    for entry in [excluded] if isinstance(excluded, str) else excluded:
        if not any(_excludes(entry, module, matcher if isinstance(excluded, str) else None) for module in every):
            raise AdapterError(f"exclude_modules: expected modules of this model, such as {modules[0]!r}, got {entry!r}")
    layers = getattr(config, "layers_to_transform", None)
    n_layers = int(architecture.decoder_kwargs["num_hidden_layers"])
    for layer in [layers] if isinstance(layers, int) else layers or []:
        if not 0 <= layer < n_layers:
            raise AdapterError(f"layers_to_transform: expected layers from 0 to {n_layers - 1}, got {layer}")


def _excludes(entry: str, module: str, matcher: Matcher | None) -> bool:
    """PEFT's rule: a text is an expression for the whole path, an entry of a list is the end of one."""
    if matcher is not None:
        return matcher.fullmatch("exclude_modules", entry, module) is not None
    return module == entry or module.endswith("." + entry)
