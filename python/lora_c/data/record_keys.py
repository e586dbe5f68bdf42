"""Which kind a record is, and which of its keys have a meaning there.

Keys that nobody knows are the user's own (id, source, score) and pass. A key that stands for text which the model should see
or learn is heeded, or refused by its name: training goes on without it nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import DataError

NEEDED = {
    "messages": ("messages",), "conversations": ("conversations",), "prompt": ("prompt", "completion"),
    "instruction": ("instruction", "output"), "text": ("text",),
}  # fmt: skip
KINDS = tuple(NEEDED)  # where a record is several, the first of them is trained
_HEEDED = {
    "messages": {"system", "tools", "functions"},
    "conversations": {"system", "tools", "functions"},
    "prompt messages": {"system", "tools", "functions"},
    "prompt": set[str](),
    "instruction": {"input", "system", "history", "tools"},
    "text": set[str](),
}
_MEANT_FOR_THE_MODEL = (
    "system", "history", "tools", "functions", "function_call", "documents", "context", "input", "instruction", "output",
    "prompt", "completion", "chosen", "rejected", "reasoning_content", "reasoning", "thinking", "images", "image", "audios",
    "audio", "videos", "video", "chat_template_kwargs", "train_detail", "training_detail",
)  # fmt: skip
_WAY_OUT = {
    "chosen": "lora-c trains on answers, not on preferences: write the chosen one as the completion",
    "rejected": "lora-c trains on answers, not on preferences: write the chosen one as the completion",
    "history": "write the earlier turns as 'messages'",
    "context": "write it into the prompt",
    "images": "lora-c trains on text alone", "image": "lora-c trains on text alone", "audios": "lora-c trains on text alone",
    "audio": "lora-c trains on text alone", "videos": "lora-c trains on text alone", "video": "lora-c trains on text alone",
}  # fmt: skip


def kind_of_record(record: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the kind of a record, and the keys of other kinds that are left aside.

    Raises
    ------
    DataError
        It is none, or holds a key that would change what is trained and has no meaning in this kind.
    """
    given = {str(key) for key, value in record.items() if not _is_nothing(value)}
    complete = [kind for kind in KINDS if given.issuperset(NEEDED[kind])]
    begun = [kind for kind in KINDS if kind in record]
    if not begun:
        raise DataError(
            "expected 'messages', 'prompt'/'completion', 'instruction'/'output', 'conversations' or 'text', "
            f"got the keys {sorted(map(str, record))[:8]}"
        )
    kind = (complete or begun)[0]
    aside = {key for other in complete if other != kind for key in NEEDED[other]}
    if kind in ("messages", "conversations") and isinstance(record.get("prompt"), str):
        aside.add("prompt")  # the first question once more, as some data sets have it
    if "instruction" in aside:
        aside.add("input")  # a part of the alpaca form
    form = "prompt messages" if kind == "prompt" and isinstance(record["prompt"], list) else kind
    own = {*NEEDED[kind], *_HEEDED[form], *aside}
    key = next((key for key in _MEANT_FOR_THE_MODEL if key in given and key not in own), None)
    if key is not None:
        way_out = _WAY_OUT.get(key, "write it into the text that is trained, or remove the key")
        raise DataError(f"expected a {_named(kind)} record without {key!r}, got one with it; {way_out}")
    if kind == "prompt" and isinstance(record.get("label"), bool):
        raise DataError(
            "expected a 'prompt'/'completion' record without 'label', got one with it; keep the desirable answers only"
        )
    return kind, sorted(aside & given)


def _named(kind: str) -> str:
    return "/".join(repr(key) for key in NEEDED[kind])


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, (list, dict)) and not value)
