"""A folder: models (dense or quantized), adapters, training output and checkpoints, tokenizers, data."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..adapters.config import parse_adapter_config
from ..adapters.mlx_format import parse_mlx_config
from ..adapters.peft_format import weights_file
from ..adapters.stack_folder import stack_names
from ..adapters.virtual_tokens_config import TENSOR as VIRTUAL_TOKENS
from ..checkpoints.config_and_files import config_of_files
from ..checkpoints.folder import Checkpoint
from ..checkpoints.prequantized import quant_type_of, refuse_other_quantization
from ..checkpoints.safetensors_file import SafetensorsFile, TensorInfo
from ..checkpoints.written import MLX_FILE, STACK_FILE, has_own_base
from ..data.records import SUFFIXES, kind_of
from ..data.splits import SPLITS, find_files
from ..errors import CheckpointError, DataError, LoraCError, shorten
from ..families.architectures import architecture_of
from ..families.multimodal import is_left_out, text_config
from ..files.json_files import read_json_object
from ..files.os_errors import reason
from ..model.loading import check_tensors
from ..text.tokenizer import Tokenizer
from .files import describe_tensors, inspect_data, inspect_file, json_or_nothing
from .report import Report, shape_text

_A = re.compile(r"(?P<module>.+)\.(lora_A(\.default)?\.weight|lora_embedding_A(\.default)?|lora_a)")


_VECTOR, _BOTTLENECK = ".ia3_l", ".bottleneck.down.weight"


def inspect_path(path: str | os.PathLike[str]) -> Report:
    """Say what a file or folder is.

    Raises
    ------
    CheckpointError
        There is nothing at the path, or it cannot be read.
    """
    target = Path(path)
    report = Report(str(path))
    try:
        if target.is_dir():
            report.bytes = sum(entry.stat().st_size for entry in os.scandir(target) if entry.is_file())
            _folder(target, report)
        elif target.exists() or target.is_symlink():
            inspect_file(target, report)
        else:
            raise CheckpointError(f"{path}: expected a file or a folder, got nothing there")
    except (OSError, ValueError) as error:
        if isinstance(error, LoraCError):
            raise
        raise CheckpointError(f"{path}: expected something that can be read, got: {reason(error)}") from None
    return report


def _folder(folder: Path, report: Report) -> None:
    names = {entry.name for entry in os.scandir(folder)}
    rows: list[tuple[bool, Callable[[Path, Report], None]]] = [
        ("trainer_state.json" in names, _checkpoint),
        ("adapter_config.json" in names, _adapter),
        (STACK_FILE in names, _stack),
        ("config.json" in names, _model),
        ("tokenizer.json" in names, _tokenizer_folder),
    ]
    for found, describe in rows:
        if found:
            describe(folder, report)
            return
    models = sorted(name for name in names if name.endswith(".gguf"))
    try:
        data = find_files(folder, tuple(SPLITS))
        if not models or any(kind_of(path) != ".txt" for path in data.taken):
            inspect_data(data, report)
            return
    except DataError as error:
        if any(kind_of(Path(name)) in SUFFIXES for name in names):
            report.problems.append(str(error))
    report.kind = "folder of GGUF files" if models else "folder"
    report.add(files=shorten(sorted(names)))
    known = "config.json (a model), adapter_config.json (an adapter), tokenizer.json, or data files"
    way_out = f"; give one of its files, such as {models[0]}" if models else ""
    report.problems.append(f"expected {known} in the folder, got {shorten(sorted(names)) or 'nothing'}{way_out}")


def _model(folder: Path, report: Report) -> None:
    report.kind = "model folder of Hugging Face"
    config = report.collect(lambda: text_config(read_json_object(folder / "config.json"))) or {}
    report.add(architecture=config.get("architectures") or config.get("model_type"))
    for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings"):
        if isinstance(config.get(key), int):
            report.facts[key.replace("_", " ")] = config[key]
    checkpoint = report.collect(lambda: Checkpoint(folder))
    if checkpoint is not None:
        with checkpoint:
            _weights(checkpoint, config, report)
    report.collect(lambda: _tokenizer(folder, config, report))


def _weights(checkpoint: Checkpoint, config: dict[str, Any], report: Report) -> None:
    tensors = checkpoint.tensors
    describe_tensors(tensors, report)
    kinds = {name: kind for name in tensors if (kind := quant_type_of(name, tensors))}
    blocks: Counter[str] = Counter()
    elements = sum(math.prod(info.shape) for name, info in tensors.items() if not _is_part(name, kinds))
    for name, kind in kinds.items():
        state = _state(checkpoint, f"{name}.quant_state.bitsandbytes__{kind}")
        shape = state.get("shape")
        elements += math.prod(shape) if isinstance(shape, list) and all(isinstance(n, int) for n in shape) else 0
        nested = " nested" if name + ".nested_absmax" in tensors else ""
        blocks[f"{kind}{nested}, block {state.get('blocksize')}"] += 1
    report.add(parameters=elements)
    report.add_counts("quantized", blocks, (f"{count} weights {kind}" for kind, count in blocks.items()))
    report.add(tied_head=True if config.get("tie_word_embeddings") else None)
    if kinds:
        report.kind += ", 4-bit weights of bitsandbytes"
    report.collect(lambda: refuse_other_quantization(config, tensors))
    architecture = report.collect(lambda: architecture_of(config))
    if architecture is not None and architecture.labels is not None:
        labels = architecture.labels
        report.add(labels=labels.problem_type + ": " + shorten(labels.names, 8))
        report.values["labels"] = list(labels.names)
    if architecture is not None:
        unread = [info for name, info in tensors.items() if is_left_out(name, architecture.family)]
        report.add(left_out=f"{len(unread)} tensors of the part for images" if unread else None)
        report.values |= {"tensors left out": len(unread)} if unread else {}
        report.collect(lambda: _check_against_config(checkpoint))


def _check_against_config(checkpoint: Checkpoint) -> None:
    """What `load_model` would say."""
    checkpoint.config = config_of_files(checkpoint)
    check_tensors(checkpoint, architecture_of(checkpoint.config))


def _is_part(name: str, kinds: dict[str, str]) -> bool:
    wholes = (name, name.rpartition(".")[0], name.rpartition(".quant_state.")[0])
    return any(whole in kinds for whole in wholes)


def _state(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    try:
        state = json.loads(checkpoint.read(name).tobytes())
    except (ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def _tokenizer(folder: Path, config: dict[str, Any], report: Report) -> None:
    if not (folder / "tokenizer.json").is_file():
        report.add(tokenizer="none")
        report.values["tokenizer"] = None
        return
    tokenizer = Tokenizer.from_folder(folder, config)
    report.add(tokenizer=f"{tokenizer.vocab_size:,} tokens", chat_template="yes" if tokenizer.chat_template else "no")
    report.values |= {"tokenizer": {"tokens": tokenizer.vocab_size}, "chat template": bool(tokenizer.chat_template)}
    report.add(end_token=tokenizer.special_tokens.get("eos_token"))


def _tokenizer_folder(folder: Path, report: Report) -> None:
    report.kind = "tokenizer folder"
    report.collect(lambda: _tokenizer(folder, {}, report))


def _adapter(folder: Path, report: Report) -> None:
    values = report.collect(lambda: read_json_object(folder / "adapter_config.json")) or {}
    trained = (folder / "metrics.jsonl").is_file() and (folder / "config.yaml").is_file()
    mlx = "lora_parameters" in values
    own = str(values.get("peft_type")).upper() == "BOTTLENECK"  # PEFT has no such kind
    report.kind = "adapter of MLX" if mlx else f"adapter of {'lora-c' if own else 'PEFT'}"
    report.kind += ", output of lora-c train" if trained and not mlx else ""
    if mlx:
        table = values["lora_parameters"] if isinstance(values["lora_parameters"], dict) else {}
        report.add(rank=table.get("rank"), scale=table.get("scale"), layers=values.get("num_layers"))
        report.add(method=values.get("fine_tune_type", "lora"))
        report.collect(lambda: parse_mlx_config(values, "adapter_config.json"))
    else:
        report.add(method=values.get("peft_type", "LORA"), rank=values.get("r"), lora_alpha=values.get("lora_alpha"))
        report.add(task=values.get("task_type") if values.get("task_type") == "SEQ_CLS" else None)
        report.add(virtual_tokens=values.get("num_virtual_tokens"), begun_as=values.get("prompt_tuning_init"))
        report.add(projection=True if values.get("prefix_projection") else None)
        report.add(feedforward=values.get("feedforward_modules"), bottlenecks=_places(values))
        report.add(targets=values.get("target_modules"), base=values.get("base_model_name_or_path"))
        report.add(rslora=True if values.get("use_rslora") else None, dora=True if values.get("use_dora") else None)
        report.collect(lambda: parse_adapter_config(values, "adapter_config.json"))
        report.collect(lambda: has_own_base(folder, values.get("base_model_name_or_path")))
    weights = folder / MLX_FILE if mlx else report.collect(lambda: weights_file(folder))
    if weights is None:
        return
    file = report.collect(lambda: SafetensorsFile(weights))
    if file is not None:
        _matrices(file.tensors, mlx, report)
        file.close()


def _stack(folder: Path, report: Report) -> None:
    """Several adapters that are used together."""
    trained = (folder / "metrics.jsonl").is_file() and (folder / "config.yaml").is_file()
    report.kind = "stack of adapters" + (", output of lora-c train" if trained else "")
    kinds = {}
    for name in report.collect(lambda: stack_names(folder)) or []:
        values = report.collect(lambda name=name: read_json_object(folder / name / "adapter_config.json")) or {}  # type: ignore[misc]
        kinds[name] = str(values.get("peft_type", "LORA"))
        report.collect(lambda values=values, name=name: parse_adapter_config(values, f"{name}/adapter_config.json"))  # type: ignore[misc]
        report.collect(lambda name=name: weights_file(folder / name))  # type: ignore[misc]
    report.add(adapters=", ".join(f"{name} ({kind})" for name, kind in kinds.items()))


def _places(values: dict[str, Any]) -> str | None:
    """Where bottleneck adapters lie, and how wide they are."""
    if str(values.get("peft_type")).upper() != "BOTTLENECK":
        return None
    places = [where for key, where in (("mh_adapter", "attention"), ("output_adapter", "MLP")) if values.get(key)]
    size = (
        f"size {values['bottleneck_size']}"
        if values.get("bottleneck_size")
        else f"1/{values.get('reduction_factor', 16):g} as wide"
    )
    return f"behind {' and '.join(places)}, {size}, {values.get('non_linearity')}"


def _matrices(tensors: dict[str, TensorInfo], mlx: bool, report: Report) -> None:
    report.count_tensors(tensors)
    ranks: Counter[int] = Counter()
    for name, info in tensors.items():
        if _A.fullmatch(name) and len(info.shape) == 2:
            ranks[info.shape[1 if mlx else 0]] += 1
    matrices = sum(ranks.values()) or sum(name.endswith(_VECTOR) for name in tensors)
    bottlenecks = sum(name.endswith(_BOTTLENECK) for name in tensors)
    report.add(parameters=sum(math.prod(info.shape) for info in tensors.values()))
    elsewhere = bottlenecks or VIRTUAL_TOKENS in tensors
    report.add(adapted_matrices=None if elsewhere else matrices, adapted_places=bottlenecks or None)
    report.add_counts("ranks", ranks, (f"{rank} ({count})" for rank, count in sorted(ranks.items())))


def _checkpoint(folder: Path, report: Report) -> None:
    report.kind = "checkpoint of lora-c train"
    position = report.collect(lambda: read_json_object(folder / "trainer_state.json")) or {}
    config, history = position.get("config"), position.get("history")
    config = config if isinstance(config, dict) else {}
    history = history if isinstance(history, list) else []
    losses = [row["loss"] for row in history if isinstance(row, dict) and isinstance(row.get("loss"), (int, float))]
    report.add(step=position.get("step"), method=config.get("method"), last_loss=losses[-1] if losses else None)
    file = report.collect(lambda: SafetensorsFile(folder / "training_state.safetensors"))
    if file is not None:
        report.count_tensors(file.tensors)
        trained = {name: info for name, info in file.tensors.items() if name.startswith("param.")}
        report.add(parameters=sum(math.prod(info.shape) for info in trained.values()), parameter_tensors=len(trained))
        report.add(first=shorten(f"{name[6:]} {shape_text(info.shape)}" for name, info in list(trained.items())[:1]))
        file.close()
    adapter = json_or_nothing(folder / "adapter_config.json")
    report.add(rank=adapter.get("r"), targets=adapter.get("target_modules"))
