"""What requests hold: OpenAI's fields, and those of vLLM that this library has, each with its type and its bounds."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_MOST_CHOICES = 16
TokenId = int


class Body(BaseModel):
    """Base: unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class Idle(Body):
    """Fields that change nothing here: accepted, so that clients which send them work."""

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None


class StreamOptions(Body):
    """Of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampling(Idle):
    """How tokens are chosen."""

    model: str | None = None
    temperature: float | None = Field(None, ge=0.0, le=100.0)
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0.0, le=1.0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=_MOST_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int | None = Field(None, ge=0)
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    repetition_penalty: float | None = Field(None, gt=0.0, le=100.0)
    frequency_penalty: Literal[0, None] = None
    presence_penalty: Literal[0, None] = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @field_validator("stop")
    @classmethod
    def _few(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(value) > 16:
            raise ValueError(f"expected at most 16 texts, got {len(value)}")
        return value

    @field_validator("frequency_penalty", "presence_penalty", mode="before")
    @classmethod
    def _zero(cls, value: Any) -> Any:
        return 0 if isinstance(value, float) and value == 0.0 else value

    @property
    def stops(self) -> list[str]:
        """The stop texts."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in found if text]


class CompletionBody(Sampling):
    """Of /v1/completions."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = False
    best_of: Literal[1, None] = None
    suffix: Literal["", None] = None


class Message(BaseModel):
    """A message of a conversation; templates see all of its fields."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ResponseFormat(Body):
    """Plain text alone."""

    type: Literal["text"]


class ChatBody(Sampling):
    """Of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Any = None
    verbosity: Any = None
    modalities: list[Literal["text"]] | None = None


class EmbeddingBody(Idle):
    """Of /v1/embeddings."""

    model: str | None = None
    input: str | list[str] | list[TokenId] | list[list[TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)


class TokenizeBody(Body):
    """Of /tokenize."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeBody(Body):
    """Of /detokenize."""

    model: str | None = None
    tokens: list[TokenId]


class LoadBody(Body):
    """Of /v1/load_lora_adapter."""

    lora_name: str
    lora_path: str


class UnloadBody(Body):
    """Of /v1/unload_lora_adapter."""

    lora_name: str
    lora_int_id: int | None = None
