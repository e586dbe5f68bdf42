"""What a training run sets on the decoder of a model ends with the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..configs import TrainConfig
from ..configs.training import Recompute
from ..errors import ConfigError
from .optimizers import paged_folder

if TYPE_CHECKING:
    from .._core import Decoder, Parameter
    from ..model.model import Model


@contextmanager
def run_settings(decoder: Decoder, config: TrainConfig, recompute: Recompute) -> Iterator[None]:
    """Precision, recomputation, type of activations and noise of a run, while the block runs.

    Another user of the model (its `generate`, a second trainer, a notebook's next cell) finds what it set itself.

    Raises
    ------
    ConfigError
        Activations that are off-loaded find no room in their folder.
    """
    before = decoder.activation_dtype, decoder.recompute, decoder.precision, decoder.noise
    offload = decoder.activation_offload
    decoder.activation_offload = paged_folder(config) if config.activation_offload else None
    decoder.activation_dtype, decoder.recompute, decoder.precision = config.activation_dtype, recompute, config.precision
    decoder.noise = config.neftune_noise_alpha or 0.0, config.seed
    try:
        yield
    except (ValueError, MemoryError) as error:
        if not str(error).startswith("activation_offload: folder:"):
            raise
        raise ConfigError(f"{error} (paged_dir)") from None
    finally:
        decoder.activation_dtype, decoder.recompute, decoder.precision, decoder.noise = before
        decoder.activation_offload = offload


def check_same_parameters(model: Model, parameters: list[Parameter]) -> None:
    """Refuse to train what the model does not use any more.

    Raises
    ------
    ConfigError
        The model is merged, or has other trainable parameters than those that the trainer was made for.
    """
    if model.is_merged:
        raise ConfigError("model: expected one that is not merged, got a merged one; call unmerge_adapter() first")
    now = model.trainable_parameters()
    if len(now) != len(parameters) or any(a is not b for a, b in zip(now, parameters, strict=True)):
        active = f"the adapter {model.active_adapter!r} in use" if model.active_adapter else "no adapter in use"
        raise ConfigError(
            f"model: expected the parameters that the trainer was made for, got a model with {active}; go back with "
            "set_adapter, or make a new Trainer"
        )
