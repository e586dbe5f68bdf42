"""Text to token ids and back: `tokenizer.json` through the tokenizers library, and the model's chat template."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, DataError
from ..files.json_files import read_json_object
from ..files.paths import expand
from ..files.regular_file import check_regular
from . import chat_template
from .final_message import render_open
from .special_tokens import NAMES, add_special_tokens, read_special_tokens, text_of
from .stream_decoder import StreamDecoder
from .template_files import DEFAULT, TEMPLATE_FILE, TOOL_USE, read_templates, write_templates
from .tokenizer_growth import check_growth
from .tokenizers_library import library_errors

if TYPE_CHECKING:
    import tokenizers

    from ..families.labels import Labels

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", TEMPLATE_FILE,
    "chat_template.json", "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip


_MOST_BYTES = 1 << 30  # of tokenizer.json; the largest in use have some forty million


class Tokenizer:
    """The tokenizer of a model folder.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
        The tokenizer itself.
    special_tokens : dict
        Text of bos_token, eos_token, pad_token, unk_token and so on, where the model has one; templates see them.
    chat_template : str, optional
        Jinja source; `None` for a base model.
    tool_template : str, optional
        The template for conversations with tools, where the model has a separate one.

    Attributes
    ----------
    templates : dict
        Every chat template by its name: "default", "tool_use", and what a model has besides.
    extra_special_tokens : list of str
        Special tokens that have no name.
    bos_token_id, eos_token_id, pad_token_id, unk_token_id : int or None
    model_vocab_size, model_context_length : int or None
        Rows of the embedding and tokens in the context of the model that it was loaded with, for what reads data.
    model_labels : Labels or None
        The labels of that model where it is a classifier: its data are texts with labels.
    """

    model_vocab_size: int | None = None
    model_context_length: int | None = None
    model_labels: Labels | None = None

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        tool_template: str | None = None,
    ) -> None:
        self.backend = backend
        self.ready: dict[str, tokenizers.Encoding] = {}  # what `encoded_ahead` has found
        self.special_tokens = dict(special_tokens or {})
        self.extra_special_tokens: list[str] = []
        self.templates: dict[str, str] = {}
        self.chat_template = chat_template
        self.tool_template = tool_template
        self.bos_token_id = self._special_id("bos_token")
        self.eos_token_id = self._special_id("eos_token")
        self.pad_token_id = self._special_id("pad_token")
        self.unk_token_id = self._special_id("unk_token")

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str], config: Mapping[str, Any] | None = None) -> Tokenizer:
        """Read a model folder; ids in the model's `config` fill in for a missing tokenizer_config.json.

        Raises
        ------
        CheckpointError
            tokenizer.json is missing or damaged, or a file beside it is.
        """
        folder = Path(expand(path, "tokenizer"))
        backend = _read_backend(folder / "tokenizer.json")
        file = folder / "tokenizer_config.json"
        options = read_json_object(file) if file.exists() else {}
        special = read_special_tokens(folder, options, backend)
        for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
            default = (config or {}).get(f"{name}_id")
            if name not in options and name not in special.named and type(default) is int and 0 <= default < 2**32:
                text = backend.id_to_token(default)
                special.named |= {name: text} if text is not None else {}
        add_special_tokens(backend, special)
        backend.encode_special_tokens = options.get("split_special_tokens") is True
        tokenizer = cls(backend, special.texts())
        tokenizer.extra_special_tokens = [text_of(token) for token in special.extra]
        tokenizer.templates = read_templates(folder, options)
        return tokenizer

    @property
    def chat_template(self) -> str | None:
        """The template for conversations."""
        return self.templates.get(DEFAULT)

    @chat_template.setter
    def chat_template(self, source: str | None) -> None:
        self._set_template(DEFAULT, source)

    @property
    def tool_template(self) -> str | None:
        """The template for conversations with tools, where the model has a separate one."""
        return self.templates.get(TOOL_USE)

    @tool_template.setter
    def tool_template(self, source: str | None) -> None:
        self._set_template(TOOL_USE, source)

    def _set_template(self, name: str, source: str | None) -> None:
        self.templates.pop(name, None)
        if source is not None:
            self.templates[name] = source

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @cached_property
    def has_byte_tokens(self) -> bool:
        """Whether characters that are no tokens become one token for each of their bytes."""
        with library_errors(CheckpointError, "tokenizer: expected a decoder that can be written"):
            decoder = self.backend.decoder
            return decoder is not None and b"ByteFallback" in decoder.__getstate__()

    @property
    def skipped_tokens(self) -> frozenset[str]:
        """The tokens that `decode` leaves out."""
        return frozenset(token.content for token in self.backend.get_added_tokens_decoder().values() if token.special)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""
        return list(self._encoding(text, add_special_tokens).ids)

    def encode_with_offsets(self, text: str, add_special_tokens: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the token ids of a text and the (begin, end) of each in characters of the text."""
        encoding = self._encoding(text, add_special_tokens)
        return list(encoding.ids), list(encoding.offsets)

    def encoding_of(self, text: str, pair: str | None = None) -> tokenizers.Encoding:
        """Return what the tokenizer makes of a text, or of two together, with the tokens that it adds by itself."""
        for part in (text,) if pair is None else (text, pair):
            check_text(part)
        with library_errors(DataError, "text: expected a text that the tokenizer can read", "is its tokenizer.json damaged?"):
            return self.backend.encode(text, pair)

    def _encoding(self, text: str, add_special_tokens: bool) -> tokenizers.Encoding:
        if self.ready and not add_special_tokens and type(text) is str and (known := self.ready.get(text)) is not None:
            return known
        check_text(text)
        with library_errors(DataError, "text: expected a text that the tokenizer can read", "is its tokenizer.json damaged?"):
            return self.backend.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids."""
        with library_errors(DataError, "ids: expected token ids that the tokenizer can read"):
            return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens))

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        found: int | None = self.backend.token_to_id(token) if _is_unicode(token) else None
        return found

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id as the vocabulary writes it, or None."""
        found: str | None = self.backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None
        return found

    def stream_decoder(self, prompt_ids: Sequence[int] = (), skip_special_tokens: bool = True) -> StreamDecoder:
        """Return a decoder that turns one new token at a time into text."""
        return StreamDecoder(self, prompt_ids, skip_special_tokens)

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        add_generation_prompt: bool = False,
        tools: Sequence[Any] | None = None,
        continue_final_message: bool = False,
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
        continue_final_message : bool
            Ends the text with the content of the last message, so that the model goes on with it.
        **variables
            Further variables of the template.

        Raises
        ------
        DataError
            The model has no chat template, or the template refuses the messages.
        """
        source, seen = self._template_for(tools), self.special_tokens | variables
        if not continue_final_message:
            return chat_template.render(source, messages, add_generation_prompt, tools, seen)
        if add_generation_prompt:
            raise DataError(
                "continue_final_message: expected one of add_generation_prompt (a new message) and continue_final_message "
                "(the last one goes on), got both"
            )
        return render_open(lambda given: chat_template.render(source, given, False, tools, seen), messages)

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
        source = self.tool_template if tools is not None and self.tool_template is not None else self.chat_template
        if source is None:
            names = f"only the templates {', '.join(sorted(self.templates))}" if self.templates else "one without"
            raise DataError(
                f"messages: expected a model with a chat template, got {names}; give a plain prompt, or add "
                "chat_template.jinja to the model folder"
            )
        return source

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat templates into a folder."""
        target = Path(folder)
        with library_errors(CheckpointError, f"{target / 'tokenizer.json'}: expected a tokenizer that can be written"):
            text = self.backend.to_str(pretty=True)
        (target / "tokenizer.json").write_text(text, encoding="utf-8", newline="")
        options = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | self._options(), indent=2) + "\n"
        (target / "tokenizer_config.json").write_text(options, encoding="utf-8")
        write_templates(target, self.templates)

    def _options(self) -> dict[str, Any]:
        own = {name: text for name, text in self.special_tokens.items() if name in NAMES or name.endswith("_token")}
        others: Any = {name: text for name, text in self.special_tokens.items() if name not in own}
        extra = others or self.extra_special_tokens
        return own | ({"extra_special_tokens": extra} if extra else {})

    def _special_id(self, key: str) -> int | None:
        text = self.special_tokens.get(key)
        return None if text is None else self.token_to_id(text)


def _read_backend(file: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a file, without the padding and the cutting that some files ask for."""
    import tokenizers

    if not file.exists():
        raise CheckpointError(
            f"{file}: expected this file, got nothing there; save the model's fast tokenizer into the folder "
            "(transformers: AutoTokenizer.from_pretrained(...).save_pretrained)"
        )
    check_regular(file, CheckpointError, most=_MOST_BYTES)
    with library_errors(CheckpointError, f"{file}: expected a tokenizer of the tokenizers library"):
        backend = tokenizers.Tokenizer.from_file(str(file))
        steps = ("normalizer", "decoder", "post_processor")
        check_growth({name: _state(getattr(backend, name)) for name in steps}, str(file))
        backend.no_padding()
        backend.no_truncation()
    return backend


def _state(part: Any) -> Any:
    """A part of a tokenizer as tokenizer.json writes it."""
    return None if part is None else json.loads(part.__getstate__())


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def check_text(text: Any) -> None:
    """Refuse what is no text that a tokenizer reads.

    Raises
    ------
    DataError
        It is no string, or has a lone surrogate.
    """
    if not isinstance(text, str):
        raise DataError(f"text: expected a string, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"text: expected valid Unicode, got a lone surrogate at character {error.start}") from None
