"""What a model's generation_config.json asks for, and what of it a call leaves aside.

`model.generation_config` has its settings, and `lora-c chat` begins with them. `model.generate` and `lora-c generate` are
greedy unless told otherwise, and say in one line what of the file changes the result and is left aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..configs import SAMPLING_FIELDS, GenerationConfig
from ..errors import CheckpointError, ConfigError, shorten
from ..files.json_files import read_json_object

GENERATION_FILE = "generation_config.json"
_ALWAYS = (
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
    "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "stop_strings", "max_new_tokens",
)  # fmt: skip
_DEFAULT_TOP_K = 50  # of transformers, for files that ask for draws and name no top_k
# What other programs do with such a file and this one cannot, and the values with which that changes nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "min_length": (0,), "epsilon_cutoff": (0, 0.0), "eta_cutoff": (0, 0.0), "top_h": (),
    "penalty_alpha": (0, 0.0), "guidance_scale": (1, 1.0), "sequence_bias": (), "exponential_decay_length_penalty": (),
    "watermarking_config": (), "encoder_repetition_penalty": (1, 1.0), "encoder_no_repeat_ngram_size": (0,),
    "token_healing": (False,), "max_time": (),
}  # fmt: skip
_OF_DRAWS = frozenset({"epsilon_cutoff", "eta_cutoff", "top_h"})  # nothing without do_sample


def read_generation_options(source: Path) -> dict[str, Any]:
    """The file of a model folder as it stands; empty where there is none."""
    file = source / GENERATION_FILE
    return read_json_object(file) if file.exists() else {}


def generation_config_of(options: Mapping[str, Any], where: str) -> GenerationConfig:
    """Return the settings of a file.

    Raises
    ------
    CheckpointError
        One of them cannot be; the message begins with `where`.
    """
    given = {key: value for key, value in options.items() if value is not None}
    taken = {key: given[key] for key in _ALWAYS if key in given}
    if given.get("do_sample"):
        taken |= {"do_sample": True, "top_k": _DEFAULT_TOP_K}
        taken |= {key: given[key] for key in SAMPLING_FIELDS if key in given}
    try:
        return GenerationConfig(**taken)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {str(error).removeprefix('GenerationConfig: ')}") from None


def left_aside(options: Mapping[str, Any], config: GenerationConfig, where: str) -> str | None:
    """One line that says what of a file changes the result and is not in a configuration; None where nothing is.

    What the configuration was given by name is a decision, and not left aside.
    """
    try:
        asked = generation_config_of(options, where)
    except CheckpointError as error:
        return str(error)
    greedy = config.temperature == 0.0 or config.do_sample is False
    decided = config.model_fields_set | (SAMPLING_FIELDS | {"do_sample"} if greedy and _chosen(config) else set())
    names = [name for name in sorted(asked.model_fields_set) if name in options and name not in {*decided, "max_new_tokens"}]
    found = [f"{name}={getattr(asked, name)!r}" for name in names if _differs(name, asked, config)]
    unknown = [
        f"{name}={options[name]!r}" for name, idle in _UNSUPPORTED.items()
        if options.get(name) not in (None, *idle) and (options.get("do_sample") or name not in _OF_DRAWS)
    ]  # fmt: skip
    way_in = "config=model.generation_config takes it, on the command line --use-generation-config"
    lines = [f"left aside is {shorten(found, 12)} ({way_in})"] if found else []
    lines += [f"not supported is {shorten(unknown)}"] if unknown else []
    return f"{where}: {'; '.join(lines)}" if lines else None


def _chosen(config: GenerationConfig) -> bool:
    return bool(config.model_fields_set & {"temperature", "do_sample"})


def _differs(name: str, asked: GenerationConfig, config: GenerationConfig) -> bool:
    if name == "do_sample":
        return not config.sampling
    return bool(getattr(asked, name) != getattr(config, name))
