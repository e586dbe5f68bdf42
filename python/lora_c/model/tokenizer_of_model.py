"""The tokenizer of a model, and the sizes that data has to fit, without reading a weight."""

from __future__ import annotations

import os

from ..checkpoints.config_and_files import config_of_files
from ..checkpoints.folder import Checkpoint
from ..families.architectures import architecture_of
from ..gguf.checkpoint import GGUFCheckpoint
from ..text.tokenizer import Tokenizer
from .opening import open_checkpoint
from .resize_embedding import rows_for


def load_tokenizer(path: str | os.PathLike[str], resize_embedding: bool = False) -> Tokenizer:
    """Return the tokenizer of a model folder or a GGUF file as `load_model` would.

    Parameters
    ----------
    resize_embedding : bool
        Whether the model would get rows for tokens that only the tokenizer has.

    Raises
    ------
    CheckpointError
        The model cannot be used, or has no tokenizer.
    """
    with open_checkpoint(path) as checkpoint:
        if isinstance(checkpoint, Checkpoint):
            checkpoint.config = config_of_files(checkpoint)
        architecture = architecture_of(dict(checkpoint.config))
        sizes = architecture.decoder_kwargs
        tokenizer = checkpoint.tokenizer() if isinstance(checkpoint, GGUFCheckpoint) else None
        if tokenizer is None:
            tokenizer = Tokenizer.from_folder(checkpoint.path, dict(checkpoint.config))
    tokenizer.model_context_length = int(sizes["max_position_embeddings"])
    tokenizer.model_labels = architecture.labels
    rows = rows_for(tokenizer) if resize_embedding else 0
    tokenizer.model_vocab_size = max(rows, int(sizes["vocab_size"]))
    return tokenizer
