"""What made a step whose numbers were not fit for an update: its batches, the parameters before it, how it was computed.

A folder `bad-step-N` beside the checkpoints: step.json, batches.safetensors and parameters.safetensors. `lora-c replay`
computes it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__, _core
from ..checkpoints.safetensors_file import SafetensorsFile
from ..checkpoints.safetensors_writer import TensorEntry, write_safetensors
from ..configs.adapters import kind_name
from ..data.batching import PackedBatch
from ..errors import CheckpointError
from ..files.atomic import atomic_folder
from ..files.json_files import read_json_object
from .digests import bytes_of

if TYPE_CHECKING:
    from .._core import Parameter
    from ..adapters import Adapter
    from ..model.model import Model
    from ..training.trainer import Trainer

STEP_FILE, BATCHES_FILE, PARAMETERS_FILE = "step.json", "batches.safetensors", "parameters.safetensors"
FORMAT = 1
SETTINGS = ("precision", "recompute", "activation_dtype", "noise")  # of the decoder
_BEGUN_WITH = {"prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path"}
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
    frozen : list of str
        Names of those adapters that are not trained.
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
    frozen: list[str]

    @classmethod
    def of(cls, trainer: Trainer, step: int, loss: float, problem: str) -> StepRecord:
        """Of a trainer whose parameters hold the gradients of the step, counted from 0."""
        model, decoder = trainer.model, trainer.model.decoder
        return cls(
            step=step + 1,
            problem=problem,
            loss=float(loss).hex(),
            gradients=gradients_digest(p.grad for p in trainer.parameters),
            first_dropout_step=step * trainer.config.gradient_accumulation_steps,
            adapters=_adapters(model),
            base=_base(model),
            settings={name: getattr(decoder, name) for name in SETTINGS},
            kernels=kernels(model.device),
            model=trainer.model_digest,
            frozen=[name for name, part in _parts(model).items() if not any(p.requires_grad for p in part.parameters())],
        )


@dataclass(frozen=True)
class BadStep:
    """A step as it can be computed again."""

    record: StepRecord
    batches: list[PackedBatch]
    parameters: dict[str, NDArray[np.float32]]


def kernels(device: str) -> dict[str, Any]:
    """What results depend on besides their inputs."""
    return {"isa": _core.get_isa(), "fast_operands": _core.get_fast_operands(), "device": device, "lora_c": __version__}


def gradients_digest(gradients: Iterable[NDArray[np.float32] | None]) -> str:
    """The digest of the bytes of gradients, in their order; one of them is held at a time."""
    digest = blake2b(digest_size=16)
    for gradient in gradients:
        if gradient is not None:
            digest.update(bytes_of(gradient))
        del gradient  # on another device a copy: not beside the next one
    return digest.hexdigest()


def kept_parameters(model: Model) -> dict[str, Parameter]:
    """By name what is trained, and what adapters in use hold that is not: their files may be gone."""
    held = [*model.trainable_parameters(), *(model.adapter.parameters() if model.adapter is not None else [])]
    return {parameter.name: parameter for parameter in held}


def _parts(model: Model) -> dict[str, Adapter]:
    """Name to each adapter in use."""
    if model.adapter is None or model.active_adapter is None:
        return {}
    names = getattr(model.adapter, "names", [model.active_adapter])  # of a stack
    return dict(zip(names, model.adapter.parts(), strict=True))


def _adapters(model: Model) -> dict[str, dict[str, Any]]:
    """Name to kind and options; those that are as usual are left out, since some exclude each other, and the text that a
    prompt began with: its values are kept, and the tokenizer may have gone."""
    configs = {name: part.config for name, part in _parts(model).items()}
    given = {
        name: config.model_dump(mode="json", exclude=_BEGUN_WITH, exclude_defaults=True) for name, config in configs.items()
    }
    return {name: {"peft_type": kind_name(config)} | given[name] for name, config in configs.items()}


def _base(model: Model) -> dict[str, Any]:
    return {"path": str(model.source), "load": model.load_options}


def bad_step_folder(output_dir: Path, step: int) -> Path:
    return output_dir / f"bad-step-{step}"


def write_bad_step(folder: Path, record: StepRecord, batches: Sequence[PackedBatch], parameters: Iterable[Parameter]) -> None:
    """Write a step aside, atomically; of parameters that lie on a device, one is copied at a time.

    Raises
    ------
    SaveError
        It cannot be written.
    """
    arrays = [
        TensorEntry.of(f"{i}.{name}", np.ascontiguousarray(_as_stored(name, getattr(batch, name))))
        for i, batch in enumerate(batches) for name in _ARRAYS
    ]  # fmt: skip
    values = [TensorEntry(p.name, np.dtype(np.float32), p.shape, partial(getattr, p, "data")) for p in parameters]
    with atomic_folder(folder, {STEP_FILE, BATCHES_FILE, PARAMETERS_FILE}.__contains__) as aside:
        for file_name, entries in ((BATCHES_FILE, arrays), (PARAMETERS_FILE, values)):
            with open(aside / file_name, "wb") as file:
                write_safetensors(file.write, entries, {})
        text = json.dumps({"format": FORMAT} | asdict(record), indent=2, ensure_ascii=False)
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


_TYPES: dict[str, type] = {"int": int, "str": str, "dict": dict, "list": list}


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: expected this file of the bad step, got nothing there; copy the whole folder")
    file = SafetensorsFile(path)
    try:
        return {name: file.read(name) for name in file.tensors}  # views, which keep the mapping
    finally:
        file.close()
