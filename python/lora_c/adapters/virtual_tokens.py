"""Adapters that are tokens before every sequence: prompt tuning (embeddings) and prefix tuning (keys and values)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .._core import Parameter
from ..configs import PrefixTuningConfig, PromptTuningConfig
from ..families.architectures import Architecture
from ..reference import prefix_encoder
from ..weights.parts import Parts
from .adapter import Adapter
from .data import F32, AdapterArrays
from .loaded import in_one_block
from .virtual_tokens_config import TENSOR

# What an encoder consists of, in the order of `Decoder.set_virtual_tokens`.
ENCODER = tuple(
    f"prompt_encoder.{part}"
    for part in ("embedding.weight", "transform.0.weight", "transform.0.bias", "transform.2.weight", "transform.2.bias")
)


class PromptTuningAdapter(Adapter):
    """Embeddings (n, hidden_size) before those of every sequence.

    Parameters
    ----------
    values : Parameter
        The embeddings.
    scale : float
        What they are multiplied by on their way in.
    """

    def __init__(self, config: PromptTuningConfig, values: Parameter, scale: float) -> None:
        super().__init__(config)
        self.values, self.scale = values, scale

    @property
    def n_virtual(self) -> int:
        """How many there are."""
        return self.values.shape[0]

    def parameters(self) -> list[Parameter]:
        """The embeddings."""
        return [self.values]

    def arrays(self) -> AdapterArrays:
        """The embeddings, as a file would hold them."""
        return AdapterArrays(self.config, tensors={TENSOR: self.values.data})

    def attach(self, decoder: Parts) -> None:
        """Put them before every sequence."""
        decoder.set_virtual_tokens("prompt", self.values, self.scale)

    def detach(self, decoder: Parts) -> None:
        """Take them away."""
        decoder.set_virtual_tokens(None)


class PrefixTuningAdapter(Adapter):
    """Keys and values before those of every sequence, or what makes them.

    Parameters
    ----------
    values : sequence of Parameter
        The prefix (n, num_hidden_layers * 2 * KV) alone, or the five of an encoder.
    """

    def __init__(self, config: PrefixTuningConfig, values: Sequence[Parameter]) -> None:
        super().__init__(config)
        self.values = list(values)

    @property
    def is_shareable(self) -> bool:
        """They stand before every sequence of a call."""
        return False

    @property
    def n_virtual(self) -> int:
        """How many there are."""
        return self.values[0].shape[0]

    def parameters(self) -> list[Parameter]:
        """The prefix, or all of the encoder."""
        return self.values

    def arrays(self) -> AdapterArrays:
        """The prefix; of an encoder what it makes, as PEFT saves it."""
        values = [parameter.data for parameter in self.values]
        prefix = values[0] if len(values) == 1 else prefix_encoder(*values).astype(np.float32)
        return AdapterArrays(self.config, tensors={TENSOR: prefix})

    def attach(self, decoder: Parts) -> None:
        """Put them before every sequence."""
        decoder.set_virtual_tokens("prefix", self.values[0] if len(self.values) == 1 else self.values)

    def detach(self, decoder: Parts) -> None:
        """Take them away."""
        decoder.set_virtual_tokens(None)


def prompt_scale(architecture: Architecture) -> float:
    """What the embeddings of a prompt are multiplied by: the family's factor where it is the model that applies it to what it
    is given, and not the embedding to what it looks up."""
    is_of_model = architecture.family.embedding_scale == "multiplier"
    return float(architecture.decoder_kwargs["embedding_scale"]) if is_of_model else 1.0


def prompt_of_arrays(named: Mapping[str, F32], config: PromptTuningConfig, architecture: Architecture, trainable: bool,
                     device: str) -> PromptTuningAdapter:  # fmt: skip
    """Make the parameter of a prompt."""
    made = in_one_block(named, trainable, device)
    return PromptTuningAdapter(config, made[TENSOR], prompt_scale(architecture))


def prefix_of_arrays(
    named: Mapping[str, F32], config: PrefixTuningConfig, trainable: bool, device: str
) -> PrefixTuningAdapter:
    """Make the parameters of a prefix, or of its encoder."""
    made = in_one_block(named, trainable, device)
    return PrefixTuningAdapter(config, [made[name] for name in (TENSOR, *ENCODER) if name in made])


def load_prompt(
    arrays: AdapterArrays, architecture: Architecture, embedding: F32 | None, trainable: bool, device: str
) -> PromptTuningAdapter:
    """Return the adapter of a file."""
    assert isinstance(arrays.config, PromptTuningConfig)
    return prompt_of_arrays(arrays.tensors, arrays.config, architecture, trainable, device)


def load_prefix(
    arrays: AdapterArrays, architecture: Architecture, embedding: F32 | None, trainable: bool, device: str
) -> PrefixTuningAdapter:
    """Return the adapter of a file, whose prefix is trained as it is: no file holds what made it."""
    assert isinstance(arrays.config, PrefixTuningConfig)
    config = arrays.config.model_copy(update={"prefix_projection": False, "encoder_hidden_size": None})
    return prefix_of_arrays(arrays.tensors, config, trainable, device)
