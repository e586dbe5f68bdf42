"""GGUF files: models, LoRA adapters, and what of them would be refused. Only the header is read."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from ..checkpoints.safetensors_file import TensorInfo
from ..families.architectures import architecture_of
from ..gguf.checkpoint import GGUFCheckpoint
from ..gguf.ends import token_id
from ..gguf.format import BLOCK_TYPES
from ..gguf.reader import GGUFFile, GGUFTensor
from ..model.loading import check_tensors
from .report import Report

_READ_TYPES = ("F32", *BLOCK_TYPES)
_SIZES = (
    "block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
    "context_length",
)  # fmt: skip


def inspect_gguf(path: Path, report: Report) -> None:
    """Fill the report; a damaged file is named in its problems."""
    report.kind = "GGUF file"
    file = report.collect(lambda: GGUFFile(path))
    if file is None:
        return
    try:
        report.add(architecture=file.get("general.architecture"), name=file.get("general.name"))
        _tensors(file.tensors, report)
        kind = file.get("general.type", "model")
        if kind == "adapter":
            _adapter(file, report)
        else:
            report.kind = "GGUF model" if kind == "model" else f"GGUF file of {str(kind)[:40]!r}"
            _model(file, path, report)
    finally:
        file.close()


def _tensors(tensors: Mapping[str, GGUFTensor], report: Report) -> None:
    report.count_tensors({name: TensorInfo(i.type.name, i.shape, i.start, i.end) for name, i in tensors.items()})
    report.add(parameters=sum(math.prod(info.shape) for info in tensors.values()) if tensors else None)
    unread = sorted({info.type.name for info in tensors.values()} - set(_READ_TYPES))
    if unread:
        name = next(name for name, info in tensors.items() if info.type.name in unread)
        report.problems.append(
            f"{name}: expected one of {', '.join(_READ_TYPES)}, got {', '.join(unread)}; use a file with one of these types"
        )


def _model(file: GGUFFile, path: Path, report: Report) -> None:
    arch = file.get("general.architecture")
    for key in _SIZES:
        value = file.get(f"{arch}.{key}")
        if type(value) is int:
            report.add(**{key.rpartition(".")[2]: value})
    report.add(files=f"{file.get('split.no', 0) + 1} of {file.get('split.count')}" if file.get("split.count", 1) > 1 else None)
    _types_of_kinds(file.tensors, report)
    if file.get("split.count", 1) <= 1:  # of one of several, the output may lie in another
        report.add(tied_head=True if "output.weight" not in file.tensors else None)
    checkpoint = report.collect(lambda: GGUFCheckpoint(path))
    if checkpoint is not None:
        with checkpoint:
            architecture = report.collect(lambda: architecture_of(checkpoint.config))
            if architecture is not None:
                report.add(family=architecture.family.architecture)
                report.collect(lambda: check_tensors(checkpoint, architecture))
            report.collect(checkpoint.tokenizer)
    _tokenizer(file, report)


def _types_of_kinds(tensors: Mapping[str, GGUFTensor], report: Report) -> None:
    """Which kinds of matrices have which type: attn_q and the like, with the number of layers."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for name, info in tensors.items():
        if len(info.shape) > 1:
            parts = name.removesuffix(".weight").split(".")
            kinds[info.type.name][parts[2] if parts[0] == "blk" and len(parts) > 2 else parts[0]] += 1
    for type_name, counts in kinds.items():
        report.add_counts(f"{type_name} in", counts, (f"{kind} ({n})" for kind, n in counts.items()), 12)


def _tokenizer(file: GGUFFile, report: Report) -> None:
    tokens = file.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        report.add(tokenizer="none")
        report.values["tokenizer"] = None
        return
    kind, split = file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre")
    report.add(tokenizer=f"{len(tokens):,} tokens, {kind}" + (f" ({split})" if split else ""))
    report.add(chat_template="yes" if file.get("tokenizer.chat_template") else "no")
    report.values |= {"tokenizer": {"tokens": len(tokens), "model": kind, "pre": split}}
    report.values["chat template"] = bool(file.get("tokenizer.chat_template"))
    end = token_id(file, "eos")
    report.add(end_token=tokens[end] if end is not None else None)


def _adapter(file: GGUFFile, report: Report) -> None:
    report.kind = "GGUF adapter"
    report.add(method=file.get("adapter.type"), alpha=file.get("adapter.lora.alpha"))
    ranks: Counter[int] = Counter()
    targets: set[str] = set()
    for name, info in file.tensors.items():
        base, _, part = name.rpartition(".")
        if part == "lora_a":
            ranks[info.shape[0]] += 1
            targets.add(base.removesuffix(".weight").rpartition(".")[2])
        elif part != "lora_b" and len(report.problems) < 3:
            report.problems.append(f"{name}: expected lora_a or lora_b of a matrix, got another tensor; this is not supported")
    report.add(adapted_matrices=sum(ranks.values()), targets=sorted(targets))
    report.add_counts("ranks", ranks, (f"{rank} ({count})" for rank, count in sorted(ranks.items())))
    if file.get("adapter.type") != "lora":
        report.problems.append(f"adapter.type: expected 'lora', got {str(file.get('adapter.type'))[:40]!r}")
    if file.get("adapter.alora.invocation_tokens") is not None:
        report.problems.append("adapter.alora.invocation_tokens: expected it unset, got tokens; this is not supported")
    if not ranks:
        report.problems.append("expected lora_a and lora_b of at least one matrix, got none")
