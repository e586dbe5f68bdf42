"""Whether all ranks are about to do the same: before the first step each is compared with rank 0."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__, _core
from ..errors import ConfigError, shorten
from ..runs.bad_steps import kernels
from ..runs.digests import bytes_of
from .distributed import tell_idle

if TYPE_CHECKING:
    from .trainer import Trainer


def begin_together(trainer: Trainer) -> None:
    """What all ranks do before the first step.

    Raises
    ------
    ConfigError
        They are not about to do the same.
    """
    agree(trainer)
    tell_idle(trainer)
    trainer.share.begin()


def agree(trainer: Trainer) -> None:
    """Refuse a run whose ranks have other options, data, weights, kernels or builds of the library than rank 0.

    Raises
    ------
    ConfigError
        On every rank, naming the first one that differs and what differs.
    """
    comm = trainer.comm
    if comm.size == 1:
        return
    trainer.run_id = comm.broadcast(trainer.run_id)
    of_ranks = comm.all_gather((comm.host, _described(trainer)))
    first_host, first = of_ranks[0]
    for rank, (host, other) in enumerate(of_ranks):
        different = [name for name in dict.fromkeys((*first, *other)) if first.get(name) != other.get(name)]
        if different:
            listed = shorten([f"{name} {_shown(other.get(name))} instead of {_shown(first.get(name))}" for name in different])
            raise ConfigError(
                f"rank {rank} on {host}: expected what rank 0 on {first_host} has, got {listed}; start every rank with the "
                "same command, files and installation"
            )


def _described(trainer: Trainer) -> dict[str, Any]:
    run = trainer.run()
    options = {name: repr(value) for name, value in run.options.items()}
    options |= {name: repr(value) for name, value in trainer.config.model_dump(mode="json").items()}
    return options | {
        "steps of the run": run.total_steps,
        "step that it goes on from": trainer.resumed_at,
        "data (digest)": run.data,
        "held-out data (digest)": None if trainer.eval_data is None else trainer.eval_data_digest,
        "model (digest)": run.model,
        "trained parameters (digest)": _parameters_digest(trainer),
        "lora-c": __version__,
        "library (digest)": _library_digest(),
        **{f"kernels: {name}": value for name, value in kernels(trainer.model.device).items()},
    }


def _parameters_digest(trainer: Trainer) -> str:
    digest = blake2b(digest_size=16)
    for parameter in trainer.parameters:
        digest.update(bytes_of(np.asarray(parameter.data)))
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _library_digest() -> str:
    return blake2b(Path(_core.__file__).read_bytes(), digest_size=16).hexdigest()


def _shown(value: Any) -> str:
    text = str(value)
    return text[:8] if len(text) == 32 else text[:60]
