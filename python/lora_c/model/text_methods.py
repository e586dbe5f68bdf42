"""Text from a model: whole answers, or piece by piece. The methods of `Model`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from ..configs import GenerationConfig
from ..errors import ConfigError
from ..generation import answers as generation
from ..generation.batch import resolve
from ..generation.generation_file import GENERATION_FILE, generation_config_of, left_aside
from ..generation.sampling import with_seed
from ..notices import tell
from ..text.prompts import is_batch, need_language_model

if TYPE_CHECKING:
    from .model import Model


@overload
def generate(
    model: Model,
    prompt: str | Sequence[int] | Sequence[Mapping[str, Any]],
    config: GenerationConfig | None = None,
    **options: Any,
) -> str: ...


@overload
def generate(
    model: Model, prompt: Sequence[str] | Sequence[Sequence[Any]], config: GenerationConfig | None = None, **options: Any
) -> list[str]: ...


def generate(model: Model, prompt: Any, config: GenerationConfig | None = None, **options: Any) -> str | list[str]:
    """Return the continuation of a prompt, or a list of continuations for a list of prompts.

    Parameters
    ----------
    prompt : str, list of dict, or list of int; or a list of these
        A text, chat messages, or token ids. A text is read as it stands: where the model was trained on conversations, give
        ``[{"role": "user", "content": text}]``, which the chat template is put around, as the command line does. Several
        prompts are decoded together; each answer is the same as alone.
    config, **options
        A `GenerationConfig` and/or its fields; greedy by default. `model.generation_config` is what the model's own
        generation_config.json asks for. Without a seed each call draws anew; `model.last_seed` is the one it drew.

    Returns
    -------
    str or list of str
        A list for a list of prompts, and with num_return_sequences: the answers to the first prompt, to the second, …
    """
    resolved = _resolve(model, config, options)
    if is_batch(prompt) or resolved.num_return_sequences > 1:
        return generation.generate_batch(model, prompt if is_batch(prompt) else [prompt], resolved)
    return "".join(generation.generate_text(model, prompt, resolved))


def stream(model: Model, prompt: Any, config: GenerationConfig | None = None, **options: Any) -> Iterator[str]:
    """Yield the continuation piece by piece; a piece never ends inside a character.

    Parameters
    ----------
    prompt : str, list of dict, or list of int
        A text, chat messages, or token ids.
    config, **options
        As for `generate`, but for num_return_sequences.

    Yields
    ------
    str
        Together they are the answer.
    """
    resolved = _resolve(model, config, options)
    if resolved.num_return_sequences > 1:
        n = resolved.num_return_sequences
        raise ConfigError(f"num_return_sequences: expected 1 for an answer that is streamed, got {n}; call generate")
    return generation.generate_text(model, prompt, resolved)


def generation_config(model: Model) -> GenerationConfig:
    """How the model's generation_config.json asks for text to be generated; the defaults where there is none.

    Raises
    ------
    CheckpointError
        The file asks for what cannot be.
    """
    return generation_config_of(model.generation_options, str(model.source / GENERATION_FILE))


def _resolve(model: Model, config: GenerationConfig | None, options: dict[str, Any]) -> GenerationConfig:
    """Combine a configuration with options; what of the model's own settings is left aside is said once."""
    need_language_model(model, "generate")
    resolved = with_seed(resolve(config, options))
    n = resolved.num_return_sequences
    if n > 1 and not resolved.sampling:
        raise ConfigError(f"num_return_sequences: expected 1 for the greedy answer, got {n}; give a temperature, too")
    model.last_seed = resolved.seed if resolved.sampling else None
    if model.generation_options and not model.told_settings:
        model.told_settings = True
        if (line := left_aside(model.generation_options, resolved, str(model.source / GENERATION_FILE))) is not None:
            tell(line)
    return resolved
