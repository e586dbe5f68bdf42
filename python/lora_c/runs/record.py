"""run.json: what a run was, for whoever wants to understand or repeat it, and where its base model is.

It is written beside the adapter when the run starts and again when it ends.
"""

from __future__ import annotations

import math
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__, _core
from ..display.measures import measures_of
from ..errors import LoraCError
from ..files.atomic import write_json
from ..files.json_files import read_json_object
from ..gguf.checkpoint import has_blocks
from ..notices import tell
from .digests import base_digest, tokenizer_digest

if TYPE_CHECKING:
    from ..data import Dataset
    from ..model.model import Model
    from ..training.train_result import TrainResult
    from ..training.trainer import Trainer

RUN_FILE = "run.json"


def describe_run(trainer: Trainer, base: str, command: str | None = None) -> dict[str, Any]:
    """What is known of a run before it starts.

    Parameters
    ----------
    base : str
        The base model as it was named.
    command : str, optional
        The command line.
    """
    model, config = trainer.model, trainer.config
    held_out = trainer.eval_data
    quantized_here = config.method == "qlora" and not has_blocks(base)
    quantization = model.quantization.options() if quantized_here else {"quantize": None}
    tokenizer = {"digest": tokenizer_digest(model.tokenizer)} if model.has_tokenizer else None
    return {
        "lora_c": __version__,
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "folder": os.path.abspath(trainer.output_dir),
        "base": {"name": base, "path": _absolute(base), "digest": base_digest(model.source), **quantization},
        "tokenizer": tokenizer,
        "data": _data(trainer.train_data, trainer.data_digest),
        "held_out": _data(held_out) if held_out is not None else None,
        "method": config.method,
        **_task(model),
        "trained_parameters": sum(parameter.size for parameter in trainer.parameters),
        "parameters": model.num_parameters(),
        "recompute": trainer.recompute,  # what auto came to
        "total_steps": trainer.total_steps,
        "seeds": {"training": config.seed, "adapter": model.adapter_config.seed if model.adapter_config else None},
        "machine": {
            "device": model.device, "cpu": cpu_name(), "cores": os.cpu_count(), "threads": _core.get_num_threads(),
            "kernels": _core.get_isa(), "system": platform.platform(), "python": platform.python_version(),
        },
    }  # fmt: skip


def describe_result(result: TrainResult) -> dict[str, Any]:
    """What the end of a run adds."""
    return {
        "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "interrupted": result.interrupted,
        "steps": result.steps,
        "train_loss": result.train_loss if math.isfinite(result.train_loss) else None,
        "eval_loss": result.eval_loss,
        "best": None if result.best is None else result.best.as_dict(),
        "ends_with_best": result.ends_with_best,
        "skipped": result.skipped,
        **{f"eval_{name}": value for name, value in measures_of(result.evaluation).items()},
        "seconds": round(result.elapsed_seconds, 1),
        "tokens_per_second": round(result.tokens_per_second, 1),
        "peak_memory_bytes": result.peak_memory_bytes,
        "world_size": len(result.ranks),
        "ranks": result.ranks,
    }


def _task(model: Model) -> dict[str, Any]:
    """What a classifier is asked; a language model needs no words."""
    if model.labels is None:
        return {"task_type": "CAUSAL_LM"}
    return {"task_type": "SEQ_CLS", "problem_type": model.labels.problem_type, "labels": list(model.labels.names)}


def write_run(folder: Path, record: dict[str, Any]) -> None:
    """Write run.json."""
    write_json(folder / RUN_FILE, record)


def read_run(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The record of the run that wrote a folder or one of its checkpoints; None where there is none that can be read."""
    places = [Path(folder), Path(folder).absolute().parent] if _is_checkpoint(Path(folder)) else [Path(folder)]
    for place in places:
        if (place / RUN_FILE).is_file():
            try:
                return read_json_object(place / RUN_FILE)
            except LoraCError:
                return None
    return None


def find_moved(path: str, folder: Path) -> str:
    """Where what a run noted is now: at its path, or beside the run's folder as before, where both have been moved."""
    record = read_run(folder)
    before = record.get("folder") if record else None
    if os.path.lexists(path) or not os.path.isabs(path) or not isinstance(before, str) or not os.path.isabs(before):
        return path
    moved = os.path.normpath(os.path.join(os.path.abspath(folder), os.path.relpath(path, before)))
    return moved if os.path.lexists(moved) else path


def tell_other_base(adapter: str | os.PathLike[str], base: Path) -> None:
    """Say it in a line where an adapter was trained on other weights than those it is put on."""
    record = read_run(adapter) if os.path.isdir(adapter) else None
    known = record.get("base") if record else None
    if not isinstance(known, dict) or not isinstance(known.get("digest"), str):
        return
    try:
        digest = base_digest(base)
    except (LoraCError, OSError):  # the model came from elsewhere
        return
    if digest != known["digest"]:
        tell(
            f"{os.fspath(adapter)}: trained on a base with the digest {known['digest'][:8]} ({known.get('name')}), put on one "
            f"with {digest[:8]} ({base}): its answers are those of neither"
        )


def _is_checkpoint(folder: Path) -> bool:
    return folder.absolute().name.startswith("checkpoint-")


def _absolute(path: str) -> str:
    return os.path.abspath(path) if os.path.exists(path) else path


def _data(data: Dataset, digest: str | None = None) -> dict[str, Any]:
    return {
        "files": [os.path.abspath(file) for file in data.files.taken],
        **({"digest": digest} if digest else {}),
        "examples": data.n_examples,
        "sequences": len(data),
        "tokens": data.n_tokens,
        "tokens_with_loss": data.n_predicted,
        "cut": data.n_truncated,
        "left_out_without_loss": data.n_without_loss,
        "files_left_out": data.files.describe_rest() or None,
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
