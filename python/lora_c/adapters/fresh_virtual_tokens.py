"""New adapters of prompt tuning and prefix tuning: what they begin with, as PEFT draws it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .._core import Parameter
from ..checkpoints.model_names import find
from ..configs import PrefixTuningConfig, PromptTuningConfig, VirtualTokensConfig
from ..errors import AdapterError, ConfigError
from ..text.tokenizer import Tokenizer
from ..weights.kinds import dense
from .data import F32
from .initialize import generator_of
from .virtual_tokens import (
    ENCODER,
    PrefixTuningAdapter,
    PromptTuningAdapter,
    prefix_of_arrays,
    prompt_of_arrays,
    prompt_scale,
)
from .virtual_tokens_config import TENSOR, check_room, encoder_widths, prefix_width

if TYPE_CHECKING:
    from ..model.base_weights import BaseWeights


def fresh_prompt(base_weights: BaseWeights, config: PromptTuningConfig, device: str) -> PromptTuningAdapter:
    """Return a new prompt.

    Parameters
    ----------
    base_weights : BaseWeights
        Of the model that it is for.
    config : PromptTuningConfig
        How many tokens, and how they begin.
    device : str
        Where its parameter lies.

    Raises
    ------
    AdapterError
        They leave the model no context, or something of the base is trained, which no file of it could hold.
    ConfigError
        There is no tokenizer for the text, or it has no tokens.

    Source
    ------
    Prompt tuning, arXiv:2104.08691, section 2.1.
    """
    _check_room(base_weights, config)
    n, hidden = config.num_virtual_tokens, int(base_weights.architecture.decoder_kwargs["hidden_size"])
    draws = generator_of(config.seed, "prompt_encoder.embedding")
    if config.prompt_tuning_init == "RANDOM":
        values = draws.standard_normal((n, hidden), np.float32)
    elif config.prompt_tuning_init == "SAMPLE_VOCAB":
        values = _embeddings(base_weights, draws.integers(0, _vocabulary(base_weights), n))
    else:
        ids = _ids_of_text(base_weights, config)
        values = _embeddings(base_weights, np.resize(ids, n))
    return prompt_of_arrays({TENSOR: values}, config, base_weights.architecture, True, device)


def fresh_prefix(base_weights: BaseWeights, config: PrefixTuningConfig, device: str) -> PrefixTuningAdapter:
    """Return a new prefix, or a new encoder of one.

    Parameters
    ----------
    base_weights : BaseWeights
        Of the model that it is for.
    config : PrefixTuningConfig
        How many tokens, and how they begin.
    device : str
        Where its parameters lie.

    Raises
    ------
    AdapterError
        They leave the model no context, or something of the base is trained, which no file of it could hold.
    """
    _check_room(base_weights, config)
    n, width = config.num_virtual_tokens, prefix_width(base_weights.architecture)
    draws = generator_of(config.seed, "prompt_encoder.embedding")
    is_zero = config.init_weights == "zero"
    if not config.prefix_projection:
        named = {TENSOR: np.zeros((n, width), np.float32) if is_zero else draws.standard_normal((n, width), np.float32)}
        return prefix_of_arrays(named, config, True, device)
    inner, hidden = encoder_widths(config, base_weights.architecture)
    transform = generator_of(config.seed, "prompt_encoder.transform")
    arrays = [draws.standard_normal((n, inner), np.float32)]
    for out, fan_in in ((hidden, inner), (width, hidden)):
        bound = 0.0 if is_zero and len(arrays) == 3 else 1 / math.sqrt(fan_in)
        arrays += [_uniform(transform, (out, fan_in), bound), _uniform(transform, (out,), bound)]
    return prefix_of_arrays(dict(zip(ENCODER, arrays, strict=True)), config, True, device)


def _uniform(generator: np.random.Generator, shape: tuple[int, ...], bound: float) -> F32:
    drawn: F32 = (generator.random(shape, np.float32) * 2 - 1) * np.float32(bound)
    return drawn


def _check_room(base_weights: BaseWeights, config: VirtualTokensConfig) -> None:
    check_room(config, base_weights.architecture)
    weights = base_weights.weights.values
    trained = next((name for name, w in weights.items() if isinstance(w, Parameter) and w.requires_grad), None)
    if trained is not None:
        raise AdapterError(
            f"{type(config).__name__}: expected a frozen base, got one that trains {trained}, which no file of such an "
            "adapter holds; load the model without trainable"
        )


def _vocabulary(base_weights: BaseWeights) -> int:
    return int(base_weights.architecture.decoder_kwargs["vocab_size"])


def _embeddings(base_weights: BaseWeights, ids: np.ndarray) -> F32:
    """What the embedding of the model puts out for these tokens; a factor that the model applies later is left to it."""
    factor = float(base_weights.architecture.decoder_kwargs.get("embedding_scale", 1.0)) / prompt_scale(
        base_weights.architecture
    )
    rows = np.asarray(dense(base_weights.of("embed_tokens")), np.float32)[ids]
    return np.ascontiguousarray(rows * np.float32(factor))


def _ids_of_text(base_weights: BaseWeights, config: PromptTuningConfig) -> np.ndarray:
    if config.tokenizer_name_or_path is not None:
        tokenizer = Tokenizer.from_folder(find(config.tokenizer_name_or_path))
    elif base_weights.tokenizer is not None:
        tokenizer = base_weights.tokenizer()
    else:
        raise ConfigError("tokenizer_name_or_path: expected a tokenizer for prompt_tuning_init_text, got none")
    ids = np.asarray(tokenizer.encode(config.prompt_tuning_init_text or ""), np.int64)
    if not len(ids):
        raise ConfigError("prompt_tuning_init_text: expected a text with tokens, got one without; give another text")
    beyond = ids[ids >= _vocabulary(base_weights)]
    if len(beyond):
        raise ConfigError(
            f"tokenizer_name_or_path: expected the model's tokenizer (its embedding has {_vocabulary(base_weights):,} rows), "
            f"got one that gives the token {beyond[0]:,}"
        )
    return ids
