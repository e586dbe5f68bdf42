"""One file: which format its first bytes and its name say, and what is in it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ..checkpoints.safetensors_file import SafetensorsFile, TensorInfo
from ..data.record_keys import KINDS, kind_of_record
from ..data.records import SUFFIXES, kind_of, read_records
from ..data.splits import FoundFiles, find_files
from ..data.streams import text_blocks
from ..errors import CheckpointError, LoraCError, shorten
from ..files.json_files import read_json_object
from ..files.regular_file import open_regular
from .gguf_files import inspect_gguf
from .report import Report, shape_text

_SAMPLE = 1000  # records of a file that are looked at
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # the first bytes by version
_PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def inspect_file(path: Path, report: Report) -> None:
    """Fill the report; a damaged file is named in its problems."""
    report.bytes = path.stat().st_size
    with open_regular(path, CheckpointError) as file:
        head = file.read(64)
    if head[:4] == b"GGUF":
        inspect_gguf(path, report)
    elif path.suffix == ".safetensors":
        _safetensors(path, report)
    elif _is_pickle(path, head):
        report.kind = "pickle"
        report.problems.append(
            "a pickle can run code when opened and is never read; save it as safetensors with the tool that made it"
        )
    elif path.suffix == ".json" and _looks_like_object(head):
        _json(path, report)
    elif kind_of(path) in SUFFIXES:
        inspect_data(find_files(path), report)
    elif not head:
        report.kind = "empty file"
        report.problems.append("the file is empty")
    else:
        report.problems.append(f"a file that begins with {head[:8]!r} and ends in {path.suffix or 'nothing'!r} is not known")


def _is_pickle(path: Path, head: bytes) -> bool:
    is_zip = head[:4] == b"PK\x03\x04" and path.suffix.lower() == ".bin"  # as torch.save writes it
    return is_zip or path.suffix.lower() in _PICKLE_SUFFIXES or head[:2] in _PICKLES


def _looks_like_object(head: bytes) -> bool:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


def _safetensors(path: Path, report: Report) -> None:
    report.kind = "safetensors file"
    try:
        file = SafetensorsFile(path)
    except LoraCError as error:
        report.problems.append(str(error))
        return
    describe_tensors(file.tensors, report)
    report.add(metadata=shorten(f"{key}={value[:40]}" for key, value in file.metadata.items()))
    names = list(file.tensors)
    if any(name.startswith("param.") for name in names):
        report.add(holds="training state of lora-c; inspect its folder")
    elif any(".lora_A." in name or ".lora_embedding_A" in name for name in names):
        report.add(holds="adapter weights of PEFT; inspect their folder")
    elif any(name.endswith(".lora_a") for name in names):
        report.add(holds="adapter weights of MLX; inspect their folder")
    elif any("quant_state.bitsandbytes" in name for name in names):
        report.add(holds="4-bit weights of bitsandbytes; inspect their folder")
    file.close()


def describe_tensors(tensors: dict[str, TensorInfo], report: Report) -> None:
    """Counts by type, and the largest tensors."""
    report.count_tensors(tensors)
    largest = sorted(tensors.items(), key=lambda item: item[1].start - item[1].end)[:3]
    report.add(largest=shorten(f"{name} {info.dtype} {shape_text(info.shape)}" for name, info in largest))


def _json(path: Path, report: Report) -> None:
    try:
        values = read_json_object(path)
    except LoraCError as lines:
        try:  # JSONL under another name
            inspect_data(find_files(path), report)
        except LoraCError:
            report.problems = [str(lines)]
        return
    if "model" in values and "added_tokens" in values:
        _tokenizer_json(values, report)
    elif "weight_map" in values:
        report.kind = "index of safetensors shards"
        shards = values["weight_map"]
        if isinstance(shards, dict):
            report.add(tensors=len(shards), shards=len({str(value) for value in shards.values()}))
    elif "peft_type" in values or "lora_parameters" in values:
        report.kind = "configuration of an adapter; inspect its folder"
    elif "architectures" in values or "model_type" in values:
        report.kind = "configuration of a model; inspect its folder"
        report.add(architecture=values.get("architectures") or values.get("model_type"))
    elif any(kind in values for kind in KINDS):
        inspect_data(find_files(path), report)
    else:
        report.kind = "JSON file"
        report.add(keys=shorten(values))


def _tokenizer_json(values: dict[str, Any], report: Report) -> None:
    report.kind = "tokenizer of the tokenizers library"
    model = values["model"] if isinstance(values["model"], dict) else {}
    vocab = model.get("vocab")
    report.add(model=str(model.get("type") or "unknown"), vocabulary=len(vocab) if isinstance(vocab, (dict, list)) else None)


def inspect_data(found: FoundFiles, report: Report) -> None:
    """Data sets: what the first records of each split are."""
    report.kind = "training data"
    report.add(files=len(found.taken), format=shorten(sorted({kind_of(path).lstrip(".") for path in found.taken})))
    if found.split:
        report.add(split=f"{found.split}: {shorten(path.name for path in found.taken)}")
    kinds, is_whole = _kinds(found.taken, report)
    looked = sum(kinds.values())
    report.add(records=f"{looked:,}" + ("" if is_whole else " looked at"))
    report.values |= {"records": looked, "all records": is_whole}
    report.add_counts("kinds", kinds, (f"{kind} ({count:,})" for kind, count in kinds.items()))
    if not looked and not report.problems:
        report.problems.append("no record in it")
    for split, paths in found.others.items():
        kinds, is_whole = _kinds(paths, report)
        count = f"{sum(kinds.values()):,} records" + ("" if is_whole else " looked at")
        report.facts[split] = f"{shorten(path.name for path in paths)}: {count}"
        names = [path.name for path in paths]
        report.values[split] = {"files": names, "records": sum(kinds.values()), "all_records": is_whole}
    report.add(left_out=[path.name for path in found.left_out])


def _kinds(paths: list[Path], report: Report) -> tuple[Counter[str], bool]:
    """What the records are, and whether all were looked at."""
    kinds: Counter[str] = Counter()
    is_whole = True
    for path in paths:
        try:
            if kind_of(path) == ".txt":
                if any(block.strip() for block in text_blocks(path)):
                    kinds["plain text"] += 1
                continue
            for number, (where, record) in enumerate(read_records(path)):
                if number == _SAMPLE:
                    is_whole = False
                    break
                try:
                    kinds[kind_of_record(record)[0]] += 1
                except LoraCError as error:
                    kinds["unknown"] += 1
                    if kinds["unknown"] == 1:
                        report.problems.append(f"{where}: {error}")
        except LoraCError as error:
            report.problems.append(str(error))
    return kinds, is_whole


def json_or_nothing(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where it cannot be read."""
    try:
        return read_json_object(path)
    except LoraCError:
        return {}
