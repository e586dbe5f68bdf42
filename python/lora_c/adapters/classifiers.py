"""Adapters of classifiers: their score is trained whole and lies in the adapter's file, as PEFT has it.

PEFT trains what is called `classifier` or `score` with every adapter whose task_type is SEQ_CLS, and writes both names into
modules_to_save. The names of the labels are in no file of PEFT's; here the header of the tensors says them, which PEFT reads
over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ..checkpoints.safetensors_file import SafetensorsFile
from ..checkpoints.written import ADAPTER_CONFIG, ADAPTER_FILE
from ..configs import AdapterConfig
from ..errors import AdapterError, CheckpointError, ConfigError
from ..families.architectures import Architecture
from ..families.labels import SAVED_BY_PEFT, SCORE, Labels, labels_from_options
from ..gguf.reader import is_gguf
from ..notices import tell
from .formats import find_folder
from .peft_format import PREFIX


def for_task(config: AdapterConfig, architecture: Architecture) -> AdapterConfig:
    """Return the configuration of a new adapter as the model needs it: that of a classifier trains its score, too.

    Raises
    ------
    AdapterError
        Its task_type is another than the model's.
    """
    labels, wanted = architecture.labels, getattr(config, "task_type", None)
    if labels is None and wanted == "SEQ_CLS":
        raise AdapterError(
            "task_type: expected CAUSAL_LM for a language model, got SEQ_CLS; load the base as a classifier: "
            "load_model(path, task_type='SEQ_CLS', num_labels=...)"
        )
    if labels is not None and wanted == "CAUSAL_LM":
        raise AdapterError(
            "task_type: expected SEQ_CLS for a classifier, got CAUSAL_LM; leave it out, or load a language model"
        )
    if labels is None:
        return config
    fields = type(config).model_fields
    if "modules_to_save" not in fields:
        kind = type(config).__name__
        tell(f"a {kind} does not train the classifier's score; put a LoRA adapter beside it: set_adapter([...])")
        return config
    names = dict.fromkeys([*(config.modules_to_save or []), *SAVED_BY_PEFT])
    task = {"task_type": "SEQ_CLS"} if "task_type" in fields else {}
    return config.model_copy(update=task | {"modules_to_save": list(names)})


def labels_of_adapter(path: str | os.PathLike[str]) -> tuple[Labels, bool] | None:
    """The labels of an adapter's score, as many as it has rows, and whether it says what they are; None where it has no score.

    Raises
    ------
    AdapterError
        The names in its header are none, or not as many.
    """
    try:
        if is_gguf(path):
            return None
        folder = find_folder(path)
        if not (folder / ADAPTER_CONFIG).is_file() or not (folder / ADAPTER_FILE).is_file():
            return None
        file = SafetensorsFile(folder / ADAPTER_FILE)
    except CheckpointError:  # whoever reads the adapter says what is wrong with it
        return None
    info, metadata = file.tensors.get(PREFIX + SCORE), dict(file.metadata)
    file.close()
    if info is None or len(info.shape) != 2:
        return None
    return _labels(info.shape[0], metadata, str(folder / ADAPTER_FILE)), "id2label" in metadata


def _labels(n: int, metadata: Mapping[str, Any], where: str) -> Labels:
    try:
        names = json.loads(metadata["id2label"]) if "id2label" in metadata else None
        found = labels_from_options(n, names, metadata.get("problem_type"))
        assert found is not None  # there is a number
        return found
    except (ValueError, RecursionError, ConfigError) as error:
        raise AdapterError(
            f"{where}: its header names other labels than its score has rows ({error}); it is damaged"
        ) from None
