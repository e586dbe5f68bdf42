"""Options of generating text, with transformers' names."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .base import Config, FreeTexts

SAMPLING_FIELDS = {"temperature", "top_k", "top_p", "min_p", "typical_p"}


class GenerationConfig(Config):
    """How text is generated, with transformers' names.

    Greedy unless `do_sample` is true, or `do_sample` is left alone and one of `temperature`, `top_k`, `top_p`, `min_p`,
    `typical_p` is given. A temperature of 0 means greedy. Penalties, forbidden and forced tokens hold for both.
    """

    max_new_tokens: int = Field(256, gt=0, description="Most tokens to write.")
    do_sample: bool | None = Field(
        None, description="Draw tokens at random; default: when temperature, top_k, top_p, min_p or typical_p is given."
    )
    temperature: float = Field(1.0, ge=0.0, description="Divides the logits; 0 is greedy.")
    top_k: int = Field(0, ge=0, description="Draw among the k most probable tokens; 0: all.")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Draw among the most probable tokens that reach this share.")
    min_p: float = Field(0.0, ge=0.0, le=1.0, description="Leave out tokens below this share of the most probable one's.")
    typical_p: float = Field(1.0, gt=0.0, le=1.0, description="Draw among the tokens of usual information, up to this share.")
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="Seed of the random draws; by default another one each time, which is told."
    )
    num_return_sequences: int = Field(1, gt=0, description="Answers to draw for each prompt.")
    repetition_penalty: float = Field(1.0, gt=0.0, le=1e30, description="Makes earlier tokens less likely where above 1.")
    no_repeat_ngram_size: int = Field(0, ge=0, description="No run of so many tokens comes twice; 0: any may.")
    bad_words: FreeTexts = Field(
        [], description="Words that are never written with their usual tokens; inside of other words the letters may come."
    )
    bad_words_ids: list[list[int]] = Field([], description="Sequences of token ids that are never written.")
    suppress_tokens: list[int] = Field([], description="Token ids that are never written.")
    begin_suppress_tokens: list[int] = Field([], description="Token ids that no answer begins with.")
    min_new_tokens: int = Field(0, ge=0, description="Fewest tokens to write: no end before.")
    forced_bos_token_id: int | None = Field(None, ge=0, description="Token after a prompt of one token.")
    forced_eos_token_id: int | list[int] | None = Field(None, description="Token that is written last where no end comes.")
    stop_strings: FreeTexts = Field([], description="Stop when this text appears; special tokens count as their text.")
    ignore_eos: bool = Field(False, description="Go on after the end token.")
    precision: Literal["exact", "fast", "int8"] | None = Field(
        None,
        description="exact: float32 products; fast: operands in bfloat16 or int16 where the CPU is faster with them; "
        "int8: like fast, but products of base weights on 8 bits (CPUs), whatever they are stored in. "
        "Default: what the environment variable LORA_C_PRECISION says, else fast.",
    )

    @model_validator(mode="after")
    def _fewest_is_not_more_than_most(self) -> GenerationConfig:
        if "max_new_tokens" in self.model_fields_set and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens: expected at most max_new_tokens ({self.max_new_tokens}), got {self.min_new_tokens}"
            )
        return self

    @model_validator(mode="after")
    def _forced_tokens_may_be_written(self) -> GenerationConfig:
        suppressed = set(self.suppress_tokens)
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            value = getattr(self, name)
            forced = value if isinstance(value, list) else [] if value is None else [value]
            if forced and suppressed.issuperset(forced):
                raise ValueError(f"{name}: expected a token that may be written, got {value}, which is in suppress_tokens")
        return self

    @property
    def sampling(self) -> bool:
        """Whether tokens are drawn at random."""
        if self.temperature == 0.0:
            return False
        if self.do_sample is not None:
            return self.do_sample
        return bool(self.model_fields_set & SAMPLING_FIELDS)

    @field_validator("stop_strings", "bad_words", mode="before")
    @classmethod
    def _one_text_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value
