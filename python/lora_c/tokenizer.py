"""Text to token ids and back: `tokenizer.json` through the tokenizers library, and the model's chat template."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import chat_template
from .errors import CheckpointError, DataError
from .json_files import read_json_object

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip
TOOL_TEMPLATE = "additional_chat_templates/tool_use.jinja"


class Tokenizer:
    """The tokenizer of a model folder.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
        The tokenizer itself.
    special_tokens : dict
        Text of bos_token, eos_token, pad_token, unk_token where the model has one.
    chat_template : str, optional
        Jinja source; `None` for a base model.
    tool_template : str, optional
        The template for conversations with tools, where the model has a separate one.

    Attributes
    ----------
    bos_token_id, eos_token_id, pad_token_id, unk_token_id : int or None
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: dict[str, str] | None = None,
        chat_template: str | None = None,
        tool_template: str | None = None,
    ) -> None:
        self.backend = backend
        self.special_tokens = dict(special_tokens or {})
        self.chat_template = chat_template
        self.tool_template = tool_template
        self.bos_token_id = self._special_id("bos_token")
        self.eos_token_id = self._special_id("eos_token")
        self.pad_token_id = self._special_id("pad_token")
        self.unk_token_id = self._special_id("unk_token")

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str], config: dict[str, Any] | None = None) -> Tokenizer:
        """Read a model folder; ids in the model's `config` fill in for a missing tokenizer_config.json.

        Raises
        ------
        CheckpointError
            tokenizer.json is missing or damaged.
        """
        import tokenizers

        folder = Path(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(
                f"{file}: expected this file, got nothing there; save the model's fast tokenizer into the folder "
                "(transformers: AutoTokenizer.from_pretrained(...).save_pretrained)"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{file}: expected a tokenizer of the tokenizers library, got: {error}") from None
        backend.no_padding()
        backend.no_truncation()
        options = _read_optional(folder / "tokenizer_config.json")
        named = _read_optional(folder / "special_tokens_map.json") | options
        special = {}
        for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
            value = named.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            default = (config or {}).get(f"{key}_id")
            if value is None and key not in named and type(default) is int and 0 <= default < 2**32:
                value = backend.id_to_token(default)
            if isinstance(value, str):
                special[key] = value
        template, tool_template = _templates(folder, options)
        return cls(backend, special, template, tool_template)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""
        _check_text(text)
        return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_with_offsets(self, text: str, add_special_tokens: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the token ids of a text and the (begin, end) of each in characters of the text."""
        _check_text(text)
        encoding = self.backend.encode(text, add_special_tokens=add_special_tokens)
        return list(encoding.ids), [(int(begin), int(end)) for begin, end in encoding.offsets]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids."""
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens))

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        found: int | None = self.backend.token_to_id(token) if _is_unicode(token) else None
        return found

    def stream_decoder(self, prompt_ids: Sequence[int] = (), skip_special_tokens: bool = True) -> StreamDecoder:
        """Return a decoder that turns one new token at a time into text."""
        return StreamDecoder(self, prompt_ids, skip_special_tokens)

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        add_generation_prompt: bool = False,
        tools: Sequence[Any] | None = None,
        **variables: Any,
    ) -> str:
        """Render a conversation as the text that the model was trained on.

        Parameters
        ----------
        messages : list of dict
            Each with "role" and "content".
        add_generation_prompt : bool
            Ends the text where the assistant's answer begins.
        tools : list, optional
            JSON schemas of functions, given to the template as they are.
        **variables
            Further variables of the template.

        Raises
        ------
        DataError
            The model has no chat template, or the template refuses the messages.
        """
        source = self._template_for(tools)
        return chat_template.render(source, messages, add_generation_prompt, tools, self.special_tokens | variables)

    def marked_chat(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[Any] | None = None
    ) -> tuple[str, list[tuple[int, int]]] | None:
        """Return the text of a conversation and the (begin, end) of the assistant's parts, in characters.

        None where the template does not mark them with {% generation %}.
        """
        source = self._template_for(tools)
        if not chat_template.marks_assistant(source):
            return None
        return chat_template.render_marked(source, messages, tools, self.special_tokens)

    def _template_for(self, tools: Sequence[Any] | None) -> str:
        source = self.tool_template if tools and self.tool_template else self.chat_template
        if source is None:
            raise DataError(
                "messages: expected a model with a chat template, got one without; give a plain prompt, or add "
                "chat_template.jinja to the model folder"
            )
        return source

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into a folder."""
        target = Path(folder)
        self.backend.save(str(target / "tokenizer.json"))
        options = {"tokenizer_class": "PreTrainedTokenizerFast"} | self.special_tokens
        (target / "tokenizer_config.json").write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
        if self.chat_template is not None:
            (target / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        if self.tool_template is not None:
            (target / TOOL_TEMPLATE).parent.mkdir(exist_ok=True)
            (target / TOOL_TEMPLATE).write_text(self.tool_template, encoding="utf-8")

    def _special_id(self, key: str) -> int | None:
        text = self.special_tokens.get(key)
        return None if text is None else self.token_to_id(text)


class StreamDecoder:
    """Text of a growing token sequence, piece by piece.

    A token can end inside a UTF-8 character, and some decoders treat the start of a text differently. Hence a short
    window of earlier tokens is decoded with and without the new ones, the difference is the new text, and it is held
    back while it ends in an incomplete character.
    """

    _CONTEXT = 6

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), skip_special_tokens: bool = True) -> None:
        self._decode: Callable[[Sequence[int]], str] = lambda ids: tokenizer.decode(ids, skip_special_tokens)
        self._ids = [int(i) for i in prompt_ids][-self._CONTEXT :]
        self._done = len(self._ids)

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is complete now (often one word, sometimes nothing)."""
        self._ids.append(int(token_id))
        return self._take(final=False)

    def flush(self) -> str:
        """Return what was held back; an incomplete character becomes U+FFFD."""
        return self._take(final=True)

    def _take(self, final: bool) -> str:
        if self._done == len(self._ids):
            return ""
        before, now = self._decode(self._ids[: self._done]), self._decode(self._ids)
        if (now.endswith("\ufffd") and not final) or len(now) < len(before):
            return ""
        piece = now[len(before) :]
        drop = max(0, self._done - self._CONTEXT)
        if piece and not final and self._decode(self._ids[drop:])[-len(piece) :] == piece:
            del self._ids[:drop]
        self._done = len(self._ids)
        return piece


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise DataError(f"text: expected a string, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"text: expected valid Unicode, got a lone surrogate at character {error.start}") from None


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _templates(folder: Path, options: dict[str, Any]) -> tuple[str | None, str | None]:
    """(chat template, template for tools); the .jinja files win over the JSON files."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        tool_file = folder / TOOL_TEMPLATE
        return _read_text(file), _read_text(tool_file) if tool_file.is_file() else None
    value = _read_optional(folder / "chat_template.json").get("chat_template", options.get("chat_template"))
    if isinstance(value, list):
        named = {str(entry.get("name")): str(entry.get("template")) for entry in value if isinstance(entry, dict)}
        return named.get("default"), named.get("tool_use")
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{folder}: chat_template: expected text, got {type(value).__name__}")
    return value, None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: expected UTF-8 text, got: {error}") from None
