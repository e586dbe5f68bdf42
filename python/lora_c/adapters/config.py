"""adapter_config.json of PEFT: what is read, what may stand there without effect, and what is refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..configs import AdapterConfig, BottleneckConfig, IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig
from ..errors import AdapterError, ConfigError, shorten
from ..notices import tell
from .bottleneck_config import bottleneck_file, read_bottleneck_config
from .ia3_config import ia3_file, read_ia3_config
from .virtual_tokens_config import read_prefix_config, read_prompt_config, virtual_tokens_file

_READ_FIELDS = {
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "use_rslora", "rank_pattern",
    "alpha_pattern", "layers_to_transform", "layers_pattern", "use_dora", "bias", "modules_to_save",
    "trainable_token_indices", "fan_in_fan_out", "loftq_config",
}  # fmt: skip
# Fields that describe the file or guide training only.
_HARMLESS = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "init_lora_weights", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "megatron_config", "megatron_core",
    "qalora_group_size",
}  # fmt: skip
# Features of PEFT that change the result; later ones are named alike.
_CHANGES_RESULT = re.compile(
    r"lora_bias|layer_replication|target_parameters|alora_invocation_tokens|ensure_weight_tying|use_\w+|\w+_config"
)
# The only initialisations that leave the base weights as they are; "eva" cannot be drawn again here.
_PLAIN_INIT = (None, True, False, "gaussian", "eva", "orthogonal")
_PEFT_ALPHA = 8
_KNOWN = _READ_FIELDS | _HARMLESS


def parse_adapter_config(values: Mapping[str, Any], where: str) -> AdapterConfig:
    """Turn PEFT's adapter_config.json into the configuration of an adapter of its kind.

    Parameters
    ----------
    values : mapping
        What the file says.
    where : str
        The file, for errors.

    Raises
    ------
    AdapterError
        It is of a kind that is not supported, or a field that changes the result is set and not supported.
    """
    read = _READERS.get(str(values.get("peft_type", "LORA")).upper())
    if read is None:
        known = " or ".join(map(repr, _READERS))
        raise AdapterError(
            f"{where}: peft_type: expected {known}, got {repr(values['peft_type'])[:80]}; other methods are not supported"
        )
    return read(values, where)


def _lora_config(values: Mapping[str, Any], where: str) -> LoraConfig:
    init = values.get("init_lora_weights", True)
    if not any(init is known or init == known for known in _PLAIN_INIT):
        raise AdapterError(
            f"{where}: init_lora_weights: expected an initialisation that keeps the base weights, got {repr(init)[:80]}; "
            "convert it with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    unknown = [key for key, value in values.items() if key not in _KNOWN and not _is_neutral(key, value, values)]
    for key in unknown:
        if _CHANGES_RESULT.fullmatch(key):
            raise AdapterError(
                f"{where}: {key}: expected it unset, got {str(values[key])[:60]!r}; this feature is not supported and would "
                "change the result, merge it with PEFT (merge_and_unload) and load the merged model"
            )
    if unknown:
        tell(f"{where}: {shorten(unknown)}: no effect, as PEFT leaves out what it does not know")
    empty = next((key for key in ("r", "lora_alpha", "lora_dropout") if key in values and values[key] is None), None)
    if empty is not None:
        raise AdapterError(f"{where}: {empty}: expected a number, got null; leave the key out for PEFT's default")
    given = {key: values[key] for key in _READ_FIELDS if values.get(key) is not None}
    given.setdefault("lora_alpha", _PEFT_ALPHA)
    given.setdefault("target_modules", None)
    if values.get("task_type") == "SEQ_CLS":
        given["task_type"] = "SEQ_CLS"
    if init is not None and init != "eva":
        given["init_lora_weights"] = init
    for key in ("layers_pattern", "layers_to_transform", "exclude_modules", "modules_to_save", "trainable_token_indices"):
        if given.get(key) in ([], "", {}):
            del given[key]
    try:
        return LoraConfig(**given)
    except ConfigError as error:
        raise AdapterError(f"{where}: {error}") from None


_READERS: dict[str, Callable[[Mapping[str, Any], str], AdapterConfig]] = {
    "LORA": _lora_config,
    "IA3": read_ia3_config,
    "BOTTLENECK": read_bottleneck_config,
    "PROMPT_TUNING": read_prompt_config,
    "PREFIX_TUNING": read_prefix_config,
}


def _is_neutral(key: str, value: Any, values: Mapping[str, Any]) -> bool:
    if value in (None, False, [], {}, ""):
        return True
    # Rows of a tied embedding stay tied without being asked; whole modules do not.
    return key == "ensure_weight_tying" and not values.get("modules_to_save")


def file_config(config: AdapterConfig, modules: Iterable[str], base_model: str | None) -> dict[str, Any]:
    """Return adapter_config.json of an adapter of any kind.

    Parameters
    ----------
    modules : iterable of str
        Paths of the modules with a low-rank update.
    base_model : str or None
        What the base is called.
    """
    return _WRITERS[type(config)](config, modules, base_model)


def peft_config(config: LoraConfig, modules: Iterable[str], base_model: str | None) -> dict[str, Any]:
    """Return adapter_config.json for an adapter of these modules.

    The initialisation is written only where it is PEFT's own draw: PEFT would change the base again for "pissa".
    """
    names: Any = config.target_modules
    if names is None or names == "all-linear":
        names = sorted({module.rpartition(".")[2] for module in modules})
    alpha = config.lora_alpha
    init = config.init_lora_weights
    return {
        "peft_type": "LORA", "task_type": config.task_type or "CAUSAL_LM", "auto_mapping": None,
        "base_model_name_or_path": base_model, "revision": None, "inference_mode": True, "r": config.r,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha, "lora_dropout": config.lora_dropout,
        "target_modules": names, "exclude_modules": config.exclude_modules, "fan_in_fan_out": config.fan_in_fan_out,
        "bias": config.bias, "use_rslora": config.use_rslora, "modules_to_save": config.modules_to_save,
        "init_lora_weights": init if init in (True, False, "gaussian", "orthogonal") else True,
        "layers_to_transform": config.layers_to_transform, "layers_pattern": config.layers_pattern,
        "rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern, "use_dora": config.use_dora,
        "trainable_token_indices": config.trainable_token_indices,
    }  # fmt: skip


_WRITERS: dict[type[AdapterConfig], Callable[[Any, Iterable[str], str | None], dict[str, Any]]] = {
    LoraConfig: peft_config,
    IA3Config: ia3_file,
    BottleneckConfig: bottleneck_file,
    PromptTuningConfig: virtual_tokens_file,
    PrefixTuningConfig: virtual_tokens_file,
}
