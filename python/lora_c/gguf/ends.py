"""The tokens that end an answer, as a GGUF file names them.

llama.cpp reads three keys: the end of a text (eos), of a turn (eot) and of a message (eom), and stops at each of them. A model
with more ends keeps all of them in a key of this package besides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..text.ends import turn_end
from .format import Kind, Value
from .writer import array, uint32

if TYPE_CHECKING:
    from ..model.model import Model
    from .reader import GGUFFile
    from .same_model import PlannedFile

NAMES = ("eos", "eot", "eom")
ALL = "lora_c.eos_token_ids"
_UNSET = 0xFFFFFFFF  # a token id that some writers store for "none"


def token_id(file: GGUFFile | PlannedFile, name: str) -> int | None:
    """The id of a special token ("bos", "eos", "eot", "eom", "unknown", "padding"), where the file has one."""
    value = file.get(f"tokenizer.ggml.{name}_token_id")
    tokens = file.get("tokenizer.ggml.tokens")
    count = len(tokens) if isinstance(tokens, list) else 0  # another kind is refused where the tokenizer is read
    return value if type(value) is int and 0 <= value < (count or _UNSET) else None


def ends_of(file: GGUFFile | PlannedFile) -> list[int]:
    """The ends that a file names, the end of a text first."""
    named = [i for name in NAMES if (i := token_id(file, name)) is not None]
    more = file.get(ALL)
    whole = [int(i) for i in more] if isinstance(more, np.ndarray) and np.issubdtype(more.dtype, np.integer) else []
    return list(dict.fromkeys([*named, *(i for i in whole if 0 <= i < _UNSET)]))


def ends_metadata(model: Model) -> dict[str, Value]:
    """The keys of a model's ends."""
    ends = sorted(i for i in model.eos_token_ids if i < model.decoder.config["vocab_size"])
    tokenizer = model.tokenizer if model.has_tokenizer else None
    known = (tokenizer.eos_token_id, turn_end(tokenizer)) if tokenizer is not None else ()
    order = list(dict.fromkeys([*(i for i in known if i in ends), *ends]))
    values = {f"tokenizer.ggml.{name}_token_id": uint32(i) for name, i in zip(NAMES, order, strict=False)}
    return values | ({ALL: array(np.asarray(order, np.uint32), Kind.UINT32)} if len(order) > len(NAMES) else {})
