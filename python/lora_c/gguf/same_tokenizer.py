"""The tokenizer of a GGUF file is read as llama.cpp reads it and compared with the model's before anything is written.

Compared are the ids of the sample texts, of every special token within text, of every token's own text and of random rows of
tokens, with and without the tokens around a text; the text of every id; special tokens and templates. In a text, U+2581 is the
format's own sign for a space and stays out of the comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from ..errors import CheckpointError, shorten
from ..text.tokenizer import Tokenizer
from .same_model import PlannedFile
from .sample_texts import SAMPLE_TEXTS, texts_around
from .splits import SPLITS, steps_of
from .tokenizer import SPECIAL_IDS, tokenizer_of
from .vocabulary import WAY_OUT, described, state_of

if TYPE_CHECKING:
    import tokenizers

_SPACE = "▁"
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
    ours, theirs = tokenizer.backend, again.backend
    for special, texts in ((False, _texts(ours)), (True, SAMPLE_TEXTS)):
        found = _other_ids(ours, theirs, texts, special)
        if found is not None:
            text, want, got = found
            around = " with what stands around a text" if special else ""
            reason = _reason(_around(tokenizer) if special else _steps(tokenizer, planned))
            raise CheckpointError(
                f"GGUF: tokenizer: expected the ids {_short(want)} for {text[:60]!r}{around}, got {_short(got)} from the "
                f"file{reason}; {WAY_OUT}"
            )
    other = _other_text(ours, theirs)
    if other is not None:
        raise CheckpointError(
            f"GGUF: tokenizer: expected the text {other[1][:60]!r} for the ids {_short(other[0])}, got {other[2][:60]!r} from "
            f"the file{_reason(_decoding(tokenizer))}; {WAY_OUT}"
        )


def _compare_names(tokenizer: Tokenizer, again: Tokenizer) -> None:
    pairs = {name: (tokenizer.special_tokens.get(name), again.special_tokens.get(name)) for name in SPECIAL_IDS}
    pairs["chat_template"] = tokenizer.chat_template, again.chat_template
    pairs["chat_template.tool_use"] = tokenizer.tool_template, again.tool_template
    for name, (want, got) in pairs.items():
        known = want is not None and (not name.endswith("_token") or tokenizer.token_to_id(want) is not None)
        if known and want != got:
            raise CheckpointError(f"GGUF: {name}: expected {want!r:.60}, got {got!r:.60} from the file; {WAY_OUT}")


def _other_ids(
    ours: tokenizers.Tokenizer, theirs: tokenizers.Tokenizer, texts: Iterable[str], special: bool
) -> tuple[str, list[int], list[int]] | None:
    """The first text that has other ids: (text, our ids, theirs)."""
    for batch in _batches(texts):
        pair = (backend.encode_batch_fast(batch, add_special_tokens=special) for backend in (ours, theirs))
        for text, want, got in zip(batch, *pair, strict=True):
            if want.ids != got.ids:
                return text, list(want.ids), list(got.ids)
    return None


def _texts(backend: tokenizers.Tokenizer) -> Iterator[str]:
    from tokenizers import decoders

    yield from SAMPLE_TEXTS
    added = backend.get_added_tokens_decoder()
    for token in added.values():
        if token.special or token.normalized or _SPACE not in token.content:
            yield from texts_around(token.content)
    ids = sorted(backend.get_vocab(with_added_tokens=True).values())
    alone = backend.decode_batch([[i] for i in ids], skip_special_tokens=False)
    yield from _comparable(alone)
    if not isinstance(backend.decoder, decoders.ByteLevel):  # where a text may begin with a space that it does not have
        yield from _comparable(f"x {piece}" for piece in alone)
    plain = np.asarray([i for i in ids if i not in added] or ids)
    rows = np.random.default_rng(0).choice(plain, (_RANDOM_TEXTS, _RANDOM_LENGTH)).tolist()
    yield from _comparable(backend.decode_batch(rows, skip_special_tokens=False))


def _comparable(texts: Iterable[str]) -> Iterator[str]:
    return (text for text in texts if _SPACE not in text)


def _other_text(ours: tokenizers.Tokenizer, theirs: tokenizers.Tokenizer) -> tuple[list[int], str, str] | None:
    """The first ids that have another text, of every id alone and of the sample texts: (ids, our text, theirs)."""
    rows = [[i] for i in sorted(ours.get_vocab(with_added_tokens=True).values())]
    rows += [list(encoding.ids) for encoding in ours.encode_batch(list(SAMPLE_TEXTS))]
    for skip in (False, True):
        pair = (backend.decode_batch(rows, skip_special_tokens=skip) for backend in (ours, theirs))
        for ids, want, got in zip(rows, *pair, strict=True):
            if want != got:
                return ids, want, got
    return None


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    items = iter(texts)
    while batch := list(islice(items, _BATCH)):
        yield batch


def _short(ids: Sequence[int]) -> str:
    more = f", … ({len(ids)})" if len(ids) > 12 else ""
    return f"[{', '.join(map(str, ids[:12]))}{more}]"


# What the format has no place for, as far as the tokenizer itself says it.


def _reason(found: Iterable[str]) -> str:
    names = list(dict.fromkeys(found))
    return f"; the format has no place for {shorten(names)}" if names else ""


def _steps(tokenizer: Tokenizer, planned: PlannedFile) -> Iterator[str]:
    state = state_of(tokenizer)
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


def _around(tokenizer: Tokenizer) -> Iterator[str]:
    for step in steps_of(state_of(tokenizer).get("post_processor")):
        pieces = [piece["SpecialToken"]["id"] if "SpecialToken" in piece else "…" for piece in step.get("single", ())]
        yield f"the post_processor {step.get('type')}" + (f" ({' '.join(pieces)})" if pieces else "")


def _decoding(tokenizer: Tokenizer) -> Iterator[str]:
    yield "the decoder " + (", ".join(map(described, steps_of(state_of(tokenizer).get("decoder")))) or "None")
