"""Which kind a record is, and which of its keys have a meaning there.

Keys that nobody knows are the user's own (id, source, score) and pass. A key that stands for text which the model should see
or learn is heeded, or refused by its name: training goes on without it nowhere. One whose text is empty, as tables have it in
empty cells, says nothing and passes, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import DataError
from .known_columns import way_out_of

NEEDED = {
    "messages": ("messages",), "conversations": ("conversations",), "prompt": ("prompt", "completion"),
    "instruction": ("instruction", "output"), "text": ("text",),
}  # fmt: skip
KINDS = tuple(NEEDED)  # where a record is several, the first of them is trained
_PLAIN = {frozenset(keys): kind for kind, keys in NEEDED.items()}  # records that hold nothing else
HEEDED = {
    "messages": {"system", "tools", "functions"},
    "conversations": {"system", "tools", "functions"},
    "prompt messages": {"system", "tools", "functions"},
    "prompt": set[str](),
    "instruction": {"input", "system", "history", "tools"},
    "text": set[str](),
}
MEANT_FOR_THE_MODEL = (
    "system", "history", "tools", "functions", "function_call", "documents", "context", "input", "instruction", "output",
    "prompt", "completion", "chosen", "rejected", "reasoning_content", "reasoning", "thinking", "images", "image", "audios",
    "audio", "videos", "video", "chat_template_kwargs", "train_detail", "training_detail", "system_prompt", "system_message",
    "inputs", "prefix", "suffix", "enable_thinking",
)  # fmt: skip
# What asks for other loss, and the values that ask for none.
_OTHER_LOSS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("weight", "loss_weight", "sample_weight", "loss_scale"), (1, 1.0)),
    **dict.fromkeys(("train_on_inputs", "train_on_input", "train_on_prompt", "mask_history", "mask_prompt"), (False, 0)),
}
_PREFERENCES = ("chosen", "rejected")
_JUDGEMENTS = ("label", "kto_tag")  # of TRL's and LLaMA-Factory's sets of desirable and undesirable answers
_WAY_OUT = {
    "chosen": "lora-c trains on answers, not on preferences: write the chosen one as the completion",
    "rejected": "lora-c trains on answers, not on preferences: write the chosen one as the completion",
    "history": "write the earlier turns as 'messages'",
    "context": "write it into the prompt", "inputs": "name it 'input'",
    "system_prompt": "name it 'system', or write it as the first message",
    "system_message": "name it 'system', or write it as the first message",
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
    plain = _PLAIN.get(frozenset(record))
    if plain is not None and all(type(value) in (str, list) and value for value in record.values()):
        return plain, []
    given = {str(key) for key, value in record.items() if not _is_nothing(value)}
    complete = [kind for kind in KINDS if given.issuperset(NEEDED[kind])]
    begun = complete or [kind for kind in KINDS if kind in record]
    if not begun:
        raise DataError(
            "expected 'messages', 'prompt'/'completion', 'instruction'/'output', 'conversations' or 'text', "
            f"got the keys {keys_of(record)}{way_out_of(record)}"
        )
    kind = begun[0]
    aside = {key for other in complete if other != kind for key in NEEDED[other]}
    if "instruction" in aside:
        aside.add("input")  # a part of the alpaca form
    form = "prompt messages" if kind == "prompt" and isinstance(record["prompt"], list) else kind
    own = {*NEEDED[kind], *HEEDED[form], *aside}
    others = [key for key in MEANT_FOR_THE_MODEL if key in given and key not in own and record[key] != ""]
    _refuse_other_case(record, own | set(MEANT_FOR_THE_MODEL))
    if others and kind in ("messages", "conversations"):  # the first question once more, as some data sets have it
        aside |= {key for key in others if _is_said(record[key], record[kind], key)}
        others = [key for key in others if key not in aside]
    preferred = [key for key in _PREFERENCES if key in others]
    missing = [key for key in NEEDED[kind] if key not in record]
    if missing and not preferred:
        raise DataError(
            f"expected {missing[0]!r} to be a string, got a record without it, with the keys {keys_of(record)}"
            f"{way_out_of(record) or '; give the key that holds it this name'}"
        )
    if others:
        key = (preferred or others)[0]
        way_out = _WAY_OUT.get(key, "write it into the text that is trained, or remove the key")
        raise DataError(f"expected a {_named(kind)} record without {key!r}, got one with it; {way_out}")
    asked = next((key for key, idle in _OTHER_LOSS.items() if key in given and record[key] not in idle), None)
    if asked and kind != "text":
        raise DataError(
            f"expected a {_named(kind)} record without {asked!r}, got {str(record[asked])[:40]!r}; every learned token counts "
            "the same: mark messages that are not learned by 'weight': 0, or remove the key"
        )
    judged = next((key for key in _JUDGEMENTS if isinstance(record.get(key), bool)), None)
    if judged and kind != "text":
        raise DataError(
            f"expected a {_named(kind)} record without {judged!r}, got one with it; keep the desirable answers only, without "
            "the key"
        )
    return kind, sorted(aside & given)


def _refuse_other_case(record: Mapping[str, Any], known: set[str]) -> None:
    """Refuse "Input" beside "instruction": it is no key of the user's own."""
    for key, value in record.items():
        name = str(key).strip().lower()
        if str(key) not in known and name in known and name not in record and not _is_nothing(value) and value != "":
            raise DataError(f"expected the key {name!r}, got {str(key)!r}; give it the name in small letters")


def keys_of(record: Mapping[str, Any]) -> list[str]:
    """The keys of a record for a message."""
    return sorted(map(str, record))[:8]


def _is_said(text: Any, turns: Any, key: str) -> bool:
    """Whether one of the turns says a text; "prompt" is believed to be a question of theirs."""
    if not isinstance(text, str) or not isinstance(turns, list):
        return False
    if key == "prompt":
        return True
    said = [turn.get(key) for turn in turns if isinstance(turn, dict) for key in ("content", "value")]
    return any(isinstance(part, str) and text.strip() in part for part in said)


def _named(kind: str) -> str:
    return "/".join(repr(key) for key in NEEDED[kind])


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, (list, dict)) and not value)
