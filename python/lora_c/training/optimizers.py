"""The optimizer of a run: which one its configuration names, over which parameters and with which rates."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .. import _core
from ..configs.optimizers import OPTIM_STATES, check_optim
from ..errors import ConfigError
from ..files.file_systems import is_in_memory
from ..files.os_errors import reason
from ..notices import tell

if TYPE_CHECKING:
    from .._core import Parameter
    from ..configs import TrainConfig

Optimizer: TypeAlias = _core.AdamW | _core.AdamW8bit | _core.SGD | _core.Lion | _core.Adafactor | _core.Muon
BLOCK = 256  # of 8-bit moments
SUM = 8  # bytes of a float64
ALIGN = 64  # elements that the work matrices of Muon are rounded up to
PACKED_ROWS = 1036  # the most rows that a product packs at a time: LORA_GEMM_CHUNK
WINDOW = 4 << 20  # elements of a paged state that are in memory at a time; the next ones are on their way
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|embed_positions|wte|wpe|prompt_embeddings)(\.|$)")
_HEAD = re.compile(r"(^|\.)(lm_head|score)(\.|$)")


def make_optimizer(config: TrainConfig, parameters: list[Parameter]) -> Optimizer:
    """Make what `config.optim` names.

    Raises
    ------
    ConfigError
        The state of a paged optimizer finds no room.
    """
    if config.optim.startswith("paged_") and parameters[0].device == "cpu":
        _tell_of_memory(paged_folder(config), config.optim)
    try:
        return _make(config, parameters)
    except (ValueError, MemoryError) as error:
        text = str(error)
        if not text.startswith("folder:"):
            raise
        raise ConfigError(f"paged_dir{text.removeprefix('folder')} (paged_dir)") from None


def paged_folder(config: TrainConfig) -> Path:
    """Where the file of a paged state lies: `paged_dir`, or the output folder, or what there is yet of its path."""
    if config.paged_dir is not None:
        folder = Path(config.paged_dir).expanduser()
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            got = f"{folder} ({reason(error)})"
            raise ConfigError(f"paged_dir: expected one that can be written, got {got}; choose another folder") from None
        return folder
    folder = Path(config.output_dir).absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _tell_of_memory(folder: Path, optim: str) -> None:
    if is_in_memory(folder):
        tell(
            f"paged_dir: {folder} lies in memory (tmpfs), where {optim} saves none; name a folder on a disk, or train with "
            f"{optim.removeprefix('paged_').replace('adamw_32bit', 'adamw_torch')}"
        )


def _make(config: TrainConfig, parameters: list[Parameter]) -> Optimizer:
    options = check_optim(config.optim, config.optim_args)
    shared: dict[str, Any] = {
        "lr": config.learning_rate, "weight_decay": config.weight_decay, "no_decay": _without_decay(config, parameters),
        "lr_ratios": lr_ratios(config, parameters),
    }  # fmt: skip
    betas = {"betas": (config.adam_beta1, config.adam_beta2)}
    adam = shared | betas | {"eps": config.adam_epsilon}
    if config.optim.startswith("paged_"):
        adam["paged_folder"] = paged_folder(config)
    if OPTIM_STATES[config.optim] == "adamw":
        return _core.AdamW(parameters, **adam)
    if OPTIM_STATES[config.optim] == "adamw_8bit":
        return _core.AdamW8bit(parameters, **adam | options)
    if config.optim == "sgd":
        return _core.SGD(parameters, **shared | options)
    if config.optim == "lion":
        pair = options.get("beta1", config.adam_beta1), options.get("beta2", config.adam_beta2)
        return _core.Lion(parameters, **shared | {"betas": pair})
    if config.optim == "adafactor":
        return _adafactor(parameters, shared, options)
    adamw = [p for p in parameters if len(p.shape) == 2 and is_global(p.name)]
    return _core.Muon(parameters, **shared | betas | {"adamw": adamw, "adamw_eps": config.adam_epsilon} | options)


def _adafactor(parameters: list[Parameter], shared: dict[str, Any], options: dict[str, Any]) -> Optimizer:
    """As transformers' Trainer makes it: without scale and rate of its own, unless they are asked for."""
    options = {"scale_parameter": False, "relative_step": False} | options
    if options["relative_step"]:
        shared = {key: value for key, value in shared.items() if key != "lr"}
    return _core.Adafactor(parameters, **shared | options)


def is_global(name: str) -> bool:
    """Whether a parameter is one of the embedding or the head, which Muon leaves to AdamW."""
    return bool(_EMBEDDING.search(name) or _HEAD.search(name))


def _without_decay(config: TrainConfig, parameters: list[Parameter]) -> list[Parameter]:
    """What is no matrix; with LoRA+ the magnitudes of DoRA decay, as in PEFT's groups."""
    plus = config.loraplus_lr_ratio is not None
    return [p for p in parameters if len(p.shape) == 1 and not (plus and "magnitude" in p.name)]


def lr_ratios(config: TrainConfig, parameters: list[Parameter]) -> list[float] | None:
    """For each parameter what its learning rate is multiplied by: the groups of PEFT's create_loraplus_optimizer.

    Source
    ------
    LoRA+, arXiv:2402.12354, section 4.
    """
    ratio = config.loraplus_lr_ratio
    if ratio is None:
        return None
    embedding = config.loraplus_lr_embedding / config.learning_rate

    def of(parameter: Parameter) -> float:
        if _EMBEDDING.search(parameter.name) and "lora_" in parameter.name:
            return embedding
        return ratio if "lora_B" in parameter.name or len(parameter.shape) == 1 else 1.0

    return [of(p) for p in parameters]


def state_bytes(config: TrainConfig, parameters: list[Parameter]) -> int:
    """The most memory that the state takes, on the device of the parameters."""
    whole = checkpoint_state_bytes(config, parameters)
    if not config.optim.startswith("paged_"):
        return whole
    per_element = 8 if OPTIM_STATES[config.optim] == "adamw" else 2 + 8 / BLOCK
    return min(whole, int(2 * WINDOW * per_element))


def checkpoint_state_bytes(config: TrainConfig, parameters: list[Parameter]) -> int:
    """All of the state, wherever it lies."""
    options = check_optim(config.optim, config.optim_args)
    kind = OPTIM_STATES[config.optim]
    least = options.get("min_8bit_size", 4096)

    def of(p: Parameter) -> int:
        is_matrix = len(p.shape) == 2
        if kind == "adamw_8bit" and p.size >= least:
            return 2 * p.size + 8 * -(-p.size // BLOCK)
        if kind == "sgd":
            return 4 * p.size if options.get("momentum", 0.0) > 0 else 0
        if kind == "adafactor":
            return 4 * (sum(p.shape) if is_matrix else p.size) + (4 * p.size if options.get("beta1", 0.0) > 0 else 0)
        if kind == "lion" or (kind == "muon" and is_matrix and not is_global(p.name)):
            return 4 * p.size
        return 8 * p.size

    return sum(of(p) for p in parameters)


def work_bytes(config: TrainConfig, parameters: list[Parameter]) -> int:
    """What a step of the optimizer works in, beside its state: the sum of the squares of gradients, and of Muon two copies of
    the largest matrix, two squares of the largest short side, and the rows that its products pack."""
    if config.optim != "muon":
        return SUM
    shapes = [p.shape for p in parameters if len(p.shape) == 2 and not is_global(p.name)]
    whole = max((rows * cols for rows, cols in shapes), default=0)
    square = max((min(shape) ** 2 for shape in shapes), default=0)
    packed = max((_packed_rows(min(shape)) * max(shape) for shape in shapes), default=0)
    return SUM + 4 * (packed + sum(2 * -(-n // ALIGN) * ALIGN for n in (whole, square)))


def _packed_rows(rows: int) -> int:
    """Of a product with more rows than it packs at a time, which takes them in equal parts."""
    parts = -(-rows // PACKED_ROWS)
    return -(-rows // parts) if parts else 0
