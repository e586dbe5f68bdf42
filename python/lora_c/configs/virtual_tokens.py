"""Options of adapters that are tokens before every sequence: prompt tuning and prefix tuning, with PEFT's names."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from .base import Config, Seed
from .peft_constants import PEFT_CONSTANTS, without_constants, without_task

Count = Annotated[int, Field(gt=0, lt=2**31)]

_CONSTANTS: dict[str, tuple[Any, str]] = PEFT_CONSTANTS | {
    "num_transformer_submodules": (1, "the models here are decoders"),
    "modules_to_save": (None, "PEFT trains none beside such an adapter; put a LoRA adapter with them beside it"),
}


class VirtualTokensConfig(Config):
    """What prompt tuning and prefix tuning have in common."""

    _PEFT_TYPE: ClassVar[str]

    def __init__(self, **values: Any) -> None:
        kind, constants = type(self).__name__, _CONSTANTS | {"peft_type": (self._PEFT_TYPE, "this is its class")}
        super().__init__(**without_task(kind, without_constants(kind, values, constants)))

    num_virtual_tokens: Count = Field(20, description="Trained tokens before every sequence.")
    seed: Seed = Field(0, description="Seed of the values that it begins with.")

    @property
    def modules_to_save(self) -> None:
        """PEFT's word for modules that are trained whole: there are none."""
        return None


class PromptTuningConfig(VirtualTokensConfig):
    """Prompt tuning, with PEFT's names: trained embeddings before every sequence.

    Parameters
    ----------
    num_virtual_tokens : int
        How many. They count towards the model's context.
    prompt_tuning_init : "RANDOM", "TEXT" or "SAMPLE_VOCAB"
        They begin as normal numbers, as the embeddings of a text (repeated or cut until it fits), or as those of tokens that
        are drawn from the vocabulary.
    prompt_tuning_init_text : str, optional
        That text.
    tokenizer_name_or_path : str, optional
        The folder of the tokenizer that reads it; by default the model's own.
    seed : int
        Of what is drawn.

    Source
    ------
    Prompt tuning, arXiv:2104.08691.
    """

    _PEFT_TYPE: ClassVar[str] = "PROMPT_TUNING"

    prompt_tuning_init: Literal["RANDOM", "TEXT", "SAMPLE_VOCAB"] = Field(
        "RANDOM", description="How they begin: RANDOM, TEXT or SAMPLE_VOCAB."
    )
    prompt_tuning_init_text: str | None = Field(None, description="TEXT: the text whose embeddings they begin with.")
    tokenizer_name_or_path: str | None = Field(None, description="TEXT: who reads it; by default the model's tokenizer.")

    @field_validator("prompt_tuning_init", mode="before")
    @classmethod
    def _in_capitals(cls, value: Any) -> Any:
        value = getattr(value, "value", value)  # PEFT's own constants are members of enumerations
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _text_where_it_is_read(self) -> PromptTuningConfig:
        given = self.prompt_tuning_init_text is not None
        if given != (self.prompt_tuning_init == "TEXT"):
            raise ValueError(
                "prompt_tuning_init_text: expected a text with prompt_tuning_init='TEXT' and none with another, got "
                f"{self.prompt_tuning_init_text!r:.60} with {self.prompt_tuning_init!r}"
            )
        if self.tokenizer_name_or_path is not None and not given:
            raise ValueError("tokenizer_name_or_path: expected none without a text to read, got one; leave it out")
        return self


class PrefixTuningConfig(VirtualTokensConfig):
    """Prefix tuning, with PEFT's names: trained keys and values before those of every sequence, in each layer.

    Parameters
    ----------
    num_virtual_tokens : int
        How many. They count towards the model's context.
    prefix_projection : bool
        Make them of a small embedding by two layers with a tanh between, which are trained in their place and left out of
        the file.
    encoder_hidden_size : int, optional
        What the first of those layers puts out; by default num_key_value_heads * head_dim.
    init_weights : "zero", optional
        Begin with keys and values of zero instead of normal numbers.
    seed : int
        Of what is drawn.

    Source
    ------
    Prefix tuning, arXiv:2101.00190.
    """

    _PEFT_TYPE: ClassVar[str] = "PREFIX_TUNING"

    prefix_projection: bool = Field(False, description="Make the prefix of a small embedding by two layers.")
    encoder_hidden_size: Count | None = Field(None, description="prefix_projection: width between the two layers.")
    init_weights: Literal["zero"] | None = Field(None, description="zero: begin with keys and values of zero.")

    @model_validator(mode="after")
    def _width_where_it_is_read(self) -> PrefixTuningConfig:
        if self.encoder_hidden_size is not None and not self.prefix_projection:
            raise ValueError("encoder_hidden_size: expected none without prefix_projection, got one; set prefix_projection")
        return self
