"""Models and adapters by their names on the Hugging Face Hub: from the cache of huggingface_hub, or brought into it.

The library has the cache, the downloads, the tokens and the bar; what is here says which files are needed and puts what
goes wrong into one line. Of the weights only those that will be read are brought: what the index names, never a pickle.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ..errors import AdapterError, CheckpointError, LoraCError
from ..text.template_files import TEMPLATE_FILE, TEMPLATE_FOLDER
from .folder import shards_of
from .written import ADAPTER_CONFIG, ADAPTER_FILE, BASE_FOLDER, INDEX_FILE, MLX_FILE, MODEL_FILE

Kind = Literal["model", "adapter"]
_TOKENIZER = [
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", TEMPLATE_FILE,
    "chat_template.json", f"{TEMPLATE_FOLDER}/*.jinja",
]  # fmt: skip
_SMALL = {
    "model": ["config.json", "generation_config.json", INDEX_FILE, *_TOKENIZER],
    "adapter": [ADAPTER_CONFIG, ADAPTER_FILE, MLX_FILE, f"{BASE_FOLDER}/*", *_TOKENIZER],
}
_FILES = {"model": ("config.json", "safetensors files"), "adapter": (ADAPTER_CONFIG, ADAPTER_FILE)}
_ERRORS: dict[Kind, type[LoraCError]] = {"model": CheckpointError, "adapter": AdapterError}


def snapshot(repo: str, kind: Kind, revision: str | None = None, progress: bool | None = None) -> str:
    """The folder of a repository's files, from the cache if they are there.

    Raises
    ------
    CheckpointError or AdapterError
        There is no such repository or revision, it has no weights that can be read, or the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = _bring(repo, kind, revision, local_files_only=True)
        if not _missing(folder, kind):
            return str(folder)
    except LocalEntryNotFoundError:
        pass
    try:
        with _output(progress):
            folder = _bring(repo, kind, revision, local_files_only=False)
            for name in _missing(folder, kind):  # not there, or the library fell back to a cache that has a part of it
                hf_hub_download(repo, name, revision=folder.name)
    except LoraCError:
        raise
    except Exception as error:  # of the library, of what it takes for HTTP, of the system
        raise _ERRORS[kind](_in_one_line(repo, kind, revision, error)) from None
    return str(folder)


def _bring(repo: str, kind: Kind, revision: str | None, local_files_only: bool) -> Path:
    """Small files first: they say which weights there are; those are then of the same commit."""
    from huggingface_hub import snapshot_download

    folder = snapshot_download(repo, revision=revision, allow_patterns=_SMALL[kind], local_files_only=local_files_only)
    if kind == "model" and not local_files_only:
        snapshot_download(repo, revision=Path(folder).name, allow_patterns=_weights(Path(folder)))
    return Path(folder)


def _weights(folder: Path) -> list[str]:
    index = folder / INDEX_FILE
    return shards_of(index) if index.is_file() else [MODEL_FILE]


def _missing(folder: Path, kind: Kind) -> list[str]:
    """Files that must be there and are not."""
    if kind == "model":
        return [name for name in ("config.json", *_weights(folder)) if not (folder / name).exists()]
    has_weights = any((folder / name).exists() for name in (ADAPTER_FILE, MLX_FILE))
    return [
        name
        for name, there in ((ADAPTER_CONFIG, (folder / ADAPTER_CONFIG).exists()), (ADAPTER_FILE, has_weights))
        if not there
    ]


def _in_one_line(repo: str, kind: Kind, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    expected = f"{repo}: expected the path of {_what(kind)}, or its name on the Hugging Face Hub, got"
    if isinstance(error, errors.GatedRepoError):
        return f"{expected} a name whose files are given out on terms; accept them at its page, then run: hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{expected} neither; check the name, or for a private one run: hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo}: expected a branch, tag or commit of it, got revision {revision!r}; leave it out for the newest"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        names = " and ".join(_FILES[kind])
        gguf = f"; of a GGUF file give the path: hf download {repo} FILE.gguf" if kind == "model" else ""
        return f"{repo}: expected {_what(kind)} with {names}, got a repository without{gguf}"
    if isinstance(error, OSError) and error.errno is not None:
        from ..files.os_errors import reason

        return f"{repo}: expected to bring its files into the cache of huggingface_hub, got: {reason(error)}"
    of = f" --revision {revision}" if revision else ""
    folder = repo.rpartition("/")[2]
    return (
        f"{expected} neither a path nor a name in the cache, and {_why(error)}; where there is a network run: "
        f"hf download {repo}{of} --local-dir {folder}, and give the folder"
    )


def _why(error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to ask the Hub"
    status = getattr(getattr(error, "response", None), "status_code", None)
    return f"the Hub answers with status {status}" if status else "the Hub cannot be reached"


def _what(kind: Kind) -> str:
    return "a model" if kind == "model" else "an adapter"


@contextmanager
def _output(progress: bool | None) -> Iterator[None]:
    """The library's own bar, on a terminal and in notebooks; in a file it would be a heap of lines. No lines of its log."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    wanted = progress if progress is not None else sys.stderr.isatty() or "ipykernel" in sys.modules
    disabled = not (wanted or are_progress_bars_disabled() or os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"))
    if disabled:
        disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if disabled:
            enable_progress_bars()
