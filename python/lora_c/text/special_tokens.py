"""The special tokens that the files of a folder name, and how they get into a tokenizer that does not mark them itself.

Four files speak of them. Where they disagree it goes as in transformers 5:

* tokenizer_config.json with "added_tokens_decoder" is believed alone;
* without it special_tokens_map.json overrules tokenizer_config.json, added_tokens.json names further tokens, and the flags
  of a token are those of tokenizer.json where that marks it.
* A token that tokenizer.json does not mark gets added: with the id that it has in the vocabulary, else with the next free
  one, whatever id the other files give it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import CheckpointError, shorten
from ..files.json_files import read_json_object
from ..notices import tell
from .tokenizers_library import library_errors

if TYPE_CHECKING:
    import tokenizers

    Token: TypeAlias = str | tokenizers.AddedToken

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = "extra_special_tokens"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass
class SpecialTokens:
    """What the files say.

    named: bos_token and its like, and what a model names besides (image_token). extra: special tokens without a name.
    added: tokens by the ids that the files give them. where: the folder, for messages.
    """

    where: str
    named: dict[str, Token] = field(default_factory=dict)
    extra: list[Token] = field(default_factory=list)
    added: dict[int, tokenizers.AddedToken] = field(default_factory=dict)

    def texts(self) -> dict[str, str]:
        """The named tokens as texts: what a chat template sees."""
        return {name: text_of(token) for name, token in self.named.items()}


def text_of(token: Token) -> str:
    """The text of a token with flags or without."""
    return token if isinstance(token, str) else str(token.content)


def read_special_tokens(folder: Path, options: Mapping[str, Any], backend: tokenizers.Tokenizer) -> SpecialTokens:
    """Read what the files beside tokenizer.json say of special tokens.

    Parameters
    ----------
    options : dict
        tokenizer_config.json.
    backend : tokenizers.Tokenizer
        Of tokenizer.json as it is.

    Raises
    ------
    CheckpointError
        A token is no text, or has flags that are none.
    """
    said = dict(options)
    if "additional_special_tokens" in said and not said.get(_EXTRA):
        said[_EXTRA] = said.pop("additional_special_tokens")
    own = {key: said.pop(key) for key in list(said) if _is_own_name(key) and isinstance(said[key], str)}
    own |= _pop_mapping(said)
    result = SpecialTokens(str(folder))
    where = f"{folder / 'tokenizer_config.json'}"
    if "added_tokens_decoder" in said:
        result.added = _by_id(said["added_tokens_decoder"], f"{where}: added_tokens_decoder")
        flags = {text_of(token): token for token in result.added.values()}
    else:
        _read_map(folder / "special_tokens_map.json", said)
        own |= _pop_mapping(said)
        result.added = _read_added(folder / "added_tokens.json", said)
        flags = {text_of(token): token for token in result.added.values()}
        marked = backend.get_added_tokens_decoder()
        result.added |= marked
        flags |= {text_of(token): token for token in marked.values()}
    _name(result, said, own, flags, where)
    return result


def _name(result: SpecialTokens, said: Mapping[str, Any], own: dict[str, Any], flags: Mapping[str, Token], where: str) -> None:
    for name in NAMES:
        if said.get(name):  # an empty text names no token
            token = _token(said[name], f"{where}: {name}")
            result.named[name] = flags.get(text_of(token), token)
    others = {key: value for key, value in said.items() if _is_own_name(key) and _is_token(value)} | own
    for name, value in others.items():
        if value is not None:
            result.named[name] = _token(value, f"{where}: {name}")
    extra = said.get(_EXTRA, said.get("additional_special_tokens"))
    if extra is not None and not isinstance(extra, list):
        raise CheckpointError(f"{where}: {_EXTRA}: expected a list of tokens, got {type(extra).__name__}")
    result.extra = [_token(value, f"{where}: {_EXTRA}") for value in extra or ()]


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or hasattr(value, "content") or (isinstance(value, dict) and "content" in value)


def _is_own_name(key: str) -> bool:
    """Whether a key names a token that only this model has (image_token); the value of add_bos_token is no text."""
    return key.endswith("_token") and key not in NAMES


def _pop_mapping(said: dict[str, Any]) -> dict[str, Any]:
    """Named tokens that stand as a mapping under the name of the list."""
    return dict(said.pop(_EXTRA)) if isinstance(said.get(_EXTRA), dict) else {}


def _read_map(file: Path, said: dict[str, Any]) -> None:
    if not file.exists():
        return
    for key, value in read_json_object(file).items():
        if isinstance(value, dict) and key != _EXTRA:
            value = _token(value, f"{file}: {key}", special=True)
        elif key == _EXTRA and isinstance(value, list):
            known = said.get(_EXTRA) or []
            if not isinstance(known, list):
                raise CheckpointError(f"{file}: {_EXTRA}: expected a list in every file, got {type(known).__name__}")
            value = [*known, *(token for token in value if token not in known)]
        said[key] = value


def _read_added(file: Path, said: Mapping[str, Any]) -> dict[int, tokenizers.AddedToken]:
    if not file.exists():
        return {}
    special = {text_of(_token(said[name], f"{file.parent}: {name}")) for name in NAMES if said.get(name)}
    special |= {text_of(_token(token, f"{file.parent}: {_EXTRA}")) for token in said.get(_EXTRA) or ()}
    return {
        _id(index, f"{file}: {text}"): _added(
            {"content": text, "normalized": text not in special, "special": text in special}, str(file)
        )
        for text, index in read_json_object(file).items()
    }


def _by_id(table: Any, where: str) -> dict[int, tokenizers.AddedToken]:
    if not isinstance(table, dict):
        raise CheckpointError(f"{where}: expected ids and tokens, got {type(table).__name__}")
    found = {}
    for index, value in table.items():
        if not isinstance(value, dict):
            raise CheckpointError(f"{where}: {index}: expected a token with its flags, got {str(value)[:40]!r}")
        found[_id(index, where)] = _added(value, f"{where}: {index}")
    return found


def _id(index: Any, where: str) -> int:
    try:
        number = int(index)
    except (TypeError, ValueError):
        number = -1
    if isinstance(index, bool) or not 0 <= number < 2**32:
        raise CheckpointError(f"{where}: expected the id of a token, got {str(index)[:40]!r}")
    return number


def _token(value: Any, where: str, special: bool | None = None) -> Token:
    if isinstance(value, dict):
        return _added(value if special is None else value | {"special": special}, where)
    if isinstance(value, str) or hasattr(value, "content"):
        return value  # type: ignore[no-any-return]
    raise CheckpointError(f"{where}: expected the text of a token, got {str(value)[:40]!r}")


def _added(value: Mapping[str, Any], where: str) -> tokenizers.AddedToken:
    from tokenizers import AddedToken

    content, flags = value.get("content"), {key: value[key] for key in _FLAGS if key in value}
    if not isinstance(content, str):
        raise CheckpointError(f"{where}: expected the text of a token in 'content', got {str(content)[:40]!r}")
    wrong = next((key for key, flag in flags.items() if not isinstance(flag, bool)), None)
    if wrong is not None:
        raise CheckpointError(f"{where}: {wrong}: expected true or false, got {str(flags[wrong])[:40]!r}")
    with library_errors(CheckpointError, f"{where}: expected the text of a token"):
        return AddedToken(content, **flags)


def add_special_tokens(backend: tokenizers.Tokenizer, tokens: SpecialTokens) -> None:
    """Mark the tokens in the tokenizer, so that none of them is cut; ids that a file gives and that do not hold are told."""
    from tokenizers import AddedToken

    marked = backend.get_added_tokens_decoder().values()
    missing: list[Token] = [token for _, token in sorted(tokens.added.items())]  # marked or not: a named one becomes special
    known = {text_of(token) for token in (*marked, *missing)}
    missing += [token for token in (*tokens.named.values(), *tokens.extra) if text_of(token) not in known]
    names = set(tokens.texts().values())
    with library_errors(CheckpointError, f"{tokens.where}: expected special tokens that the tokenizer takes"):
        whole = [AddedToken(token, special=True) if isinstance(token, str) else token for token in missing if text_of(token)]
        for token in whole:
            token.special = token.special or token.content in names
        if whole:
            backend.add_tokens(whole)
    _tell_other_ids(backend, tokens)


def _tell_other_ids(backend: tokenizers.Tokenizer, tokens: SpecialTokens) -> None:
    ids = {text_of(token): (said, backend.token_to_id(text_of(token))) for said, token in tokens.added.items()}
    other = [f"{text} is {has}, not {said}" for text, (said, has) in ids.items() if has is not None and has != said]
    if other:
        tell(f"{tokens.where}: the ids of added tokens are those of tokenizer.json: {shorten(other)}")


def is_marked(backend: tokenizers.Tokenizer, token_id: int) -> bool:
    """Whether a token is one of the added ones, which are never cut."""
    return token_id in backend.get_added_tokens_decoder()
