"""Copies of a model folder's small files: only what is in that folder, and only what its name says.

A folder may come from a stranger, and what is saved from it may be published: a link that leads out of it, or a file of
another kind under the name of a tokenizer's, is left out with a line. Links into the blobs of a Hugging Face cache are the
folder's own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..files.os_errors import reason
from ..notices import tell


def copy_own_file(source: Path, name: str, target: Path) -> bool:
    """Copy a file of a model folder into another folder; False, and nothing there, where it is absent or left out."""
    file = source / name
    if not file.is_file():
        return False
    if not is_own(source, file):
        tell(f"{file}: left out, because it is a link to {os.path.realpath(file)}, which lies outside the model's folder")
        return False
    try:
        data = file.read_bytes()
    except OSError as error:
        tell(f"{file}: left out, because it cannot be read ({reason(error)})")
        return False
    expected = _unlike_its_name(name, data)
    if expected:
        tell(f"{file}: left out, because it is not {expected}")
        return False
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_bytes(data)
    return True


def is_own(folder: Path, file: Path) -> bool:
    """Whether a file lies in the folder, or in the blobs of the cache of huggingface_hub that the folder is a snapshot of."""
    home, real = Path(os.path.realpath(folder)), Path(os.path.realpath(file))
    if real.is_relative_to(home):
        return True
    blobs = home.parent.parent / "blobs"
    return home.parent.name == "snapshots" and not blobs.is_symlink() and real.parent == blobs


def _unlike_its_name(name: str, data: bytes) -> str | None:
    """What a file of that name would be, where this one is something else."""
    try:
        if name.endswith(".json"):
            return None if isinstance(json.loads(data.decode("utf-8-sig")), dict) else "a JSON object"
        if name.endswith("merges.txt"):
            return None if _are_merges(data.decode("utf-8")) else "a list of merges"
        if name.endswith(".jinja"):
            data.decode("utf-8")
    except (ValueError, RecursionError):
        return "JSON" if name.endswith(".json") else "UTF-8 text"
    if name.endswith("tokenizer.model"):  # protocol buffers, of which the first field is a piece
        return None if data[:1] == b"\n" or _is_tiktoken(data) else "a model of SentencePiece"
    return None


def _are_merges(text: str) -> bool:
    lines = [line.rstrip("\r") for line in text.split("\n")]
    return all(line.startswith("#version") or not line or len(line.split(" ")) == 2 for line in lines)


def _is_tiktoken(data: bytes) -> bool:
    """Lines of a token in base64 and its rank, as Llama 3 has under the same name."""
    first = data.partition(b"\n")[0].split(b" ")
    return len(first) == 2 and first[1].strip().isdigit()
