"""The tokenizer of a GGUF file is read as llama.cpp reads it and compared with the model's before anything is written.

Compared are the ids of the sample texts, of every special token within text, of every token's own text and of random rows of
tokens, with and without the tokens around a text; the text of every id; special tokens and templates. In a text, U+2581 is the
format's own sign for a space and stays out of the comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError
from ..tokenizer import Tokenizer
from .same_model import PlannedFile
from .sample_texts import SAMPLE_TEXTS, texts_around
from .splits import SPLITS, steps_of
from .tokenizer import SPECIAL_IDS, tokenizer_of
from .vocabulary import WAY_OUT, described, state_of

if TYPE_CHECKING:
    import tokenizers

_BATCH = 4096  # texts encoded at a time
_RANDOM_TEXTS, _RANDOM_LENGTH = 2000, 12


def check_same_tokenizer(planned: PlannedFile, tokenizer: Tokenizer) -> None:
    """Refuse a file whose tokenizer would be another one.

    Raises
    ------
    CheckpointError
        Names the first text with other ids, both lists of ids, and the steps that the format has no place for.
    """
    again = tokenizer_of(planned)
    if again is None:
        raise CheckpointError(f"GGUF: expected a tokenizer in the file, got none; {WAY_OUT}")
    _compare_names(tokenizer, again)
    for text, special, want, got in _other_ids(tokenizer.backend, again.backend):
        around = "" if special else " (without special tokens)"
        raise CheckpointError(
            f"GGUF: tokenizer: expected the ids {_short(want)} for {text[:60]!r}{around}, got {_short(got)} from the file"
            f"{_reason(tokenizer, planned)}; {WAY_OUT}"
        )
    for ids, want_text, got_text in _other_texts(tokenizer.backend, again.backend):
        raise CheckpointError(
            f"GGUF: tokenizer: expected the text {want_text[:60]!r} for the ids {_short(ids)}, got {got_text[:60]!r} from the "
            f"file{_reason(tokenizer, planned)}; {WAY_OUT}"
        )


def _compare_names(tokenizer: Tokenizer, again: Tokenizer) -> None:
    pairs = {name: (tokenizer.special_tokens.get(name), again.special_tokens.get(name)) for name in SPECIAL_IDS}
    pairs["chat_template"] = tokenizer.chat_template, again.chat_template
    pairs["chat_template.tool_use"] = tokenizer.tool_template, again.tool_template
    for name, (want, got) in pairs.items():
        known = want is not None and (not name.endswith("_token") or tokenizer.token_to_id(want) is not None)
        if known and want != got:
            raise CheckpointError(f"GGUF: {name}: expected {want!r:.60}, got {got!r:.60} from the file; {WAY_OUT}")


def _other_ids(ours: tokenizers.Tokenizer, theirs: tokenizers.Tokenizer) -> Iterator[tuple[str, bool, list[int], list[int]]]:
    """(text, with special tokens, our ids, theirs) where they differ."""
    for batch in _batches(_texts(ours)):
        for special in (True, False):
            pair = (backend.encode_batch(batch, add_special_tokens=special) for backend in (ours, theirs))
            for text, want, got in zip(batch, *pair, strict=True):
                if want.ids != got.ids:
                    yield text, special, list(want.ids), list(got.ids)


def _texts(backend: tokenizers.Tokenizer) -> Iterator[str]:
    yield from SAMPLE_TEXTS
    added = backend.get_added_tokens_decoder()
    contents = [token.content for token in added.values()]
    for content in contents:
        yield from (text for text in texts_around(content) if _is_comparable(text, content))
    ids = sorted(backend.get_vocab(with_added_tokens=True).values())
    alone = backend.decode_batch([[i] for i in ids], skip_special_tokens=False)
    for text in alone:
        if _is_comparable(text):
            yield text
            yield f"x {text}"
    rng = np.random.default_rng(0)
    plain = [i for i in ids if i not in added] or ids
    rows = rng.choice(np.asarray(plain), (_RANDOM_TEXTS, _RANDOM_LENGTH)).tolist()
    for text in backend.decode_batch(rows, skip_special_tokens=False):
        if _is_comparable(text):
            yield text


def _is_comparable(text: str, token: str = "") -> bool:
    return "▁" not in text.replace(token, "") if token else "▁" not in text


def _other_texts(ours: tokenizers.Tokenizer, theirs: tokenizers.Tokenizer) -> Iterator[tuple[list[int], str, str]]:
    """(ids, our text, theirs) where they differ: every id alone, and the ids of the sample texts."""
    rows = [[i] for i in sorted(ours.get_vocab(with_added_tokens=True).values())]
    rows += [list(encoding.ids) for encoding in ours.encode_batch(list(SAMPLE_TEXTS))]
    for skip in (False, True):
        pair = (backend.decode_batch(rows, skip_special_tokens=skip) for backend in (ours, theirs))
        for ids, want, got in zip(rows, *pair, strict=True):
            if want != got:
                yield ids, want, got


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    items = iter(texts)
    while batch := list(islice(items, _BATCH)):
        yield batch


def _short(ids: Sequence[int]) -> str:
    more = f", … ({len(ids)})" if len(ids) > 12 else ""
    return f"[{', '.join(map(str, ids[:12]))}{more}]"


def _reason(tokenizer: Tokenizer, planned: PlannedFile) -> str:
    """What the format has no key for, as far as the tokenizer itself says it."""
    found = list(dict.fromkeys(_without_place(state_of(tokenizer), planned)))
    return f"; the format has no place for {', '.join(found[:4])}" if found else ""


def _without_place(state: Mapping[str, Any], planned: PlannedFile) -> Iterator[str]:
    byte_level = planned.get("tokenizer.ggml.model") == "gpt2"
    ignores = byte_level and SPLITS[planned.get("tokenizer.ggml.pre")].ignore_merges
    if bool(state["model"].get("ignore_merges")) != ignores:
        yield f"ignore_merges {str(not ignores).lower()} of the model"
    if byte_level and state["model"].get("unk_token"):
        yield f"the unknown token {state['model']['unk_token']!r} of bytes without a token"
    if not byte_level:
        yield from (f"the pre_tokenizer {described(step)}" for step in steps_of(state.get("pre_tokenizer")))
    for entry in state.get("added_tokens", []):
        for flag in ("single_word", "lstrip", "rstrip", "normalized"):
            if entry[flag] and not (flag == "normalized" and not state.get("normalizer")):
                yield f"{flag} of {entry['content']!r}"
    kinds = [step.get("type") for step in steps_of(state.get("post_processor"))]
    yield from (f"the post_processor {kind}" for kind in kinds if kind != "ByteLevel")
    if not byte_level:
        yield "the decoder " + ", ".join(map(described, steps_of(state.get("decoder"))))
