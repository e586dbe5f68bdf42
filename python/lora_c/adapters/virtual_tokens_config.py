"""The files of prompt tuning and prefix tuning, as PEFT writes them: adapter_config.json and the shape of the one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..configs import PrefixTuningConfig, PromptTuningConfig, VirtualTokensConfig
from ..errors import AdapterError, ConfigError, shorten
from ..families.architectures import Architecture
from ..notices import tell

TENSOR = "prompt_embeddings"  # the one of PEFT's file
_PROMPT_FIELDS = ("num_virtual_tokens", "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path")
_PREFIX_FIELDS = ("num_virtual_tokens", "prefix_projection", "encoder_hidden_size", "init_weights")
# Fields that describe the file or the base model, or guide the start values only.
_HARMLESS = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "runtime_config", "token_dim", "num_attention_heads", "num_layers", "tokenizer_kwargs",
}  # fmt: skip


def read_prompt_config(values: Mapping[str, Any], where: str) -> PromptTuningConfig:
    """Return the configuration that a file of prompt tuning holds."""
    return _read(PromptTuningConfig, _PROMPT_FIELDS, values, where)


def read_prefix_config(values: Mapping[str, Any], where: str) -> PrefixTuningConfig:
    """Return the configuration that a file of prefix tuning holds; the width of an encoder that made it is left aside."""
    fields = (
        _PREFIX_FIELDS if values.get("prefix_projection") else tuple(f for f in _PREFIX_FIELDS if f != "encoder_hidden_size")
    )
    return _read(PrefixTuningConfig, fields, values, where)


def _read(kind: type[Any], fields: tuple[str, ...], values: Mapping[str, Any], where: str) -> Any:
    if values.get("num_virtual_tokens") is None:
        raise AdapterError(f"{where}: num_virtual_tokens: expected a number, got none")
    if values.get("num_transformer_submodules") not in (None, 1):
        raise AdapterError(
            f"{where}: num_transformer_submodules: expected 1, of a decoder, got {values['num_transformer_submodules']!r}"
        )
    known = _HARMLESS | {*_PROMPT_FIELDS, *_PREFIX_FIELDS, "num_transformer_submodules"}
    unknown = [key for key, value in values.items() if key not in known and value not in (None, False, [], {}, "")]
    if unknown:
        tell(f"{where}: {shorten(unknown)}: no effect, as PEFT leaves out what it does not know")
    try:
        return kind(**{name: values[name] for name in fields if values.get(name) is not None})
    except ConfigError as error:
        raise AdapterError(f"{where}: {error}") from None


def check_room(config: VirtualTokensConfig, architecture: Architecture) -> None:
    """Refuse what leaves the model no context.

    Raises
    ------
    AdapterError
        There are as many as its positions, or more.
    """
    context = int(architecture.decoder_kwargs["max_position_embeddings"])
    if config.num_virtual_tokens >= context:
        raise AdapterError(
            f"num_virtual_tokens: expected fewer than the model's context of {context:,} tokens, towards which they count, "
            f"got {config.num_virtual_tokens:,}"
        )


def virtual_tokens_file(config: VirtualTokensConfig, modules: Iterable[str], base_model: str | None) -> dict[str, Any]:
    """Return adapter_config.json; where no tokenizer of a text is named it is the base model's, as PEFT wants it said."""
    values = config.model_dump(exclude={"seed"})
    if values.get("prompt_tuning_init") == "TEXT" and values["tokenizer_name_or_path"] is None:
        values["tokenizer_name_or_path"] = base_model
    return {
        "peft_type": "PROMPT_TUNING" if isinstance(config, PromptTuningConfig) else "PREFIX_TUNING",
        "task_type": "CAUSAL_LM", "auto_mapping": None, "base_model_name_or_path": base_model, "revision": None,
        "inference_mode": True, **values,
    }  # fmt: skip


def with_sizes(values: dict[str, Any], config: Any, architecture: Architecture) -> dict[str, Any]:
    """Return adapter_config.json with the sizes of the base model that PEFT puts into those of virtual tokens."""
    if not isinstance(config, VirtualTokensConfig):
        return values
    sizes = architecture.decoder_kwargs
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
    if isinstance(config, PrefixTuningConfig):
        heads, width = sizes["num_key_value_heads"], sizes["num_key_value_heads"] * sizes["head_dim"]
        values = values | {"encoder_hidden_size": values["encoder_hidden_size"] or width}
    return values | {
        "token_dim": width, "num_attention_heads": heads, "num_layers": sizes["num_hidden_layers"],
        "num_transformer_submodules": 1,
    }  # fmt: skip


def prefix_width(architecture: Architecture) -> int:
    """The numbers of a prefix for each of its tokens."""
    sizes = architecture.decoder_kwargs
    return int(sizes["num_hidden_layers"]) * 2 * int(sizes["num_key_value_heads"]) * int(sizes["head_dim"])


def encoder_widths(config: PrefixTuningConfig, architecture: Architecture) -> tuple[int, int]:
    """The width of the embedding of a prefix's encoder, and of what its tanh puts out."""
    sizes = architecture.decoder_kwargs
    inner = int(sizes["num_key_value_heads"]) * int(sizes["head_dim"])
    return inner, config.encoder_hidden_size or inner


def tensor_shapes(config: PromptTuningConfig | PrefixTuningConfig, architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return what the file of such an adapter holds."""
    is_prompt = isinstance(config, PromptTuningConfig)
    width = int(architecture.decoder_kwargs["hidden_size"]) if is_prompt else prefix_width(architecture)
    return {TENSOR: (config.num_virtual_tokens, width)}
