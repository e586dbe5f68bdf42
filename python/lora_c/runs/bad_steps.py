"""What made a step whose numbers were not fit for an update: its batches, the parameters before it, how it was computed.

A folder `bad-step-N` beside the checkpoints: step.json, batches.safetensors and parameters.safetensors. `lora-c replay`
computes it again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__, _core
from ..checkpoints.safetensors_file import SafetensorsFile
from ..checkpoints.safetensors_writer import TensorEntry, write_safetensors
from ..configs import StackConfig
from ..configs.adapters import kind_name
from ..data.batching import PackedBatch
from ..errors import CheckpointError
from ..files.atomic import atomic_folder
from ..files.json_files import read_json_object

if TYPE_CHECKING:
    from ..training.trainer import Trainer

STEP_FILE, BATCHES_FILE, PARAMETERS_FILE = "step.json", "batches.safetensors", "parameters.safetensors"
FORMAT = 1
SETTINGS = ("precision", "recompute", "activation_dtype", "noise")  # of the decoder
_ARRAYS = {"input_ids": np.int32, "cu_seqlens": np.int32, "targets": np.int32, "loss_weight": np.float32}


@dataclass(frozen=True)
class StepRecord:
    """What step.json says.

    Attributes
    ----------
    step : int
        Of the run, counted from 1.
    problem : str
        What was expected of it, and what it came to.
    loss : str
        The summed loss, as Python writes a float (`float.hex`).
    gradients : str
        A digest of the gradients' bytes.
    first_dropout_step : int
        Of its first micro-batch; the others count on.
    adapters : dict
        Name of each adapter in use to its kind and options.
    base : dict
        Where the model came from, and how it was loaded.
    settings : dict
        Of the decoder: precision, recompute, activation_dtype.
    kernels : dict
        What it was computed with: ISA, operands of fast products, device.
    model : str
        The digest of the model without what is trained.
    """

    step: int
    problem: str
    loss: str
    gradients: str
    first_dropout_step: int
    adapters: dict[str, dict[str, Any]]
    base: dict[str, Any]
    settings: dict[str, Any]
    kernels: dict[str, Any]
    model: str


@dataclass(frozen=True)
class BadStep:
    """A step as it can be computed again."""

    record: StepRecord
    batches: list[PackedBatch]
    parameters: dict[str, NDArray[np.float32]]

    @classmethod
    def of(cls, trainer: Trainer, step: int, batches: Sequence[PackedBatch], loss: float, problem: str) -> BadStep:
        """Of a trainer whose parameters hold the gradients of the step, counted from 0."""
        model, decoder = trainer.model, trainer.model.decoder
        record = StepRecord(
            step=step + 1,
            problem=problem,
            loss=float(loss).hex(),
            gradients=gradients_digest([p.read_grad() for p in trainer.parameters]),
            first_dropout_step=step * trainer.config.gradient_accumulation_steps,
            adapters=_adapters(model),
            base=_base(model),
            settings={name: getattr(decoder, name) for name in SETTINGS},
            kernels=kernels(model.device),
            model=trainer.digests[1],
        )
        return cls(record, list(batches), {p.name: p.read() for p in trainer.parameters})


def kernels(device: str) -> dict[str, Any]:
    """What results depend on besides their inputs."""
    return {"isa": _core.get_isa(), "fast_operands": _core.get_fast_operands(), "device": device, "lora_c": __version__}


def gradients_digest(gradients: Sequence[NDArray[np.float32] | None]) -> str:
    """The digest of the bytes of gradients, in their order."""
    digest = blake2b(digest_size=16)
    for gradient in gradients:
        digest.update(b"" if gradient is None else np.ascontiguousarray(gradient).tobytes())
    return digest.hexdigest()


def _adapters(model: Any) -> dict[str, dict[str, Any]]:
    """Name to kind and options; those that are as usual are left out, since some exclude each other."""
    config = model.adapter_config
    if config is None:
        return {}
    parts = config.adapters if isinstance(config, StackConfig) else {model.active_adapter: config}
    given = {name: part.model_dump(mode="json", exclude_defaults=True) for name, part in parts.items()}
    return {name: {"peft_type": kind_name(part)} | given[name] for name, part in parts.items()}


def _base(model: Any) -> dict[str, Any]:
    return {"path": str(model.source), "load": model.load_options}


def bad_step_folder(output_dir: Path, step: int) -> Path:
    return output_dir / f"bad-step-{step}"


def write_bad_step(folder: Path, bad: BadStep) -> None:
    """Write a step aside, atomically.

    Raises
    ------
    SaveError
        It cannot be written.
    """
    arrays = {f"{i}.{name}": _as_stored(name, getattr(batch, name)) for i, batch in enumerate(bad.batches) for name in _ARRAYS}
    with atomic_folder(folder, {STEP_FILE, BATCHES_FILE, PARAMETERS_FILE}.__contains__) as aside:
        for file_name, named in ((BATCHES_FILE, arrays), (PARAMETERS_FILE, bad.parameters)):
            with open(aside / file_name, "wb") as file:
                entries = [TensorEntry.of(name, np.ascontiguousarray(array)) for name, array in named.items()]
                write_safetensors(file.write, entries, {})
        text = json.dumps({"format": FORMAT} | asdict(bad.record), indent=2, ensure_ascii=False)
        (aside / STEP_FILE).write_text(text + "\n", encoding="utf-8")


def _as_stored(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """An array of a batch; targets of some classifiers are values."""
    is_value = name == "targets" and not np.issubdtype(array.dtype, np.integer)
    return np.asarray(array, np.float32 if is_value else _ARRAYS[name])


def read_bad_step(folder: Path) -> BadStep:
    """Read a step that was written aside.

    Raises
    ------
    CheckpointError
        The folder holds none, or it is damaged.
    """
    file = folder / STEP_FILE
    if not file.is_file():
        raise CheckpointError(f"{folder}: expected the folder of a bad step, bad-step-N, got one without {STEP_FILE}")
    values = read_json_object(file, "the step cannot be replayed")
    if values.pop("format", None) != FORMAT:
        raise CheckpointError(f"{file}: expected format {FORMAT}, got another; use the version of lora-c that wrote it")
    fields = StepRecord.__dataclass_fields__
    wrong = next(
        (name for name in fields if not isinstance(values.get(name), _TYPES[str(fields[name].type).partition("[")[0]])), None
    )
    if wrong is not None or set(values) != set(fields):
        raise CheckpointError(f"{file}: expected {', '.join(fields)}, got another {wrong or 'key'}; the file is damaged")
    if not set(values["settings"]) <= set(SETTINGS):
        raise CheckpointError(f"{file}: settings: expected {', '.join(SETTINGS)}, got others; the file is damaged")
    record = StepRecord(**values)
    arrays = _read_arrays(folder / BATCHES_FILE)
    numbers = sorted({int(name.partition(".")[0]) for name in arrays if name.partition(".")[0].isdecimal() and len(name) < 40})
    try:
        batches = [PackedBatch(**{name: arrays[f"{i}.{name}"] for name in _ARRAYS}) for i in numbers]
    except KeyError as error:
        raise CheckpointError(f"{folder / BATCHES_FILE}: expected a tensor {error}, got none; the file is damaged") from None
    return BadStep(record, batches, _read_arrays(folder / PARAMETERS_FILE))


_TYPES: dict[str, type] = {"int": int, "str": str, "dict": dict}


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: expected this file of the bad step, got nothing there; copy the whole folder")
    file = SafetensorsFile(path)
    try:
        return {name: np.array(file.read(name)) for name in file.tensors}
    finally:
        file.close()
