"""Options of the server."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from .base import Config


class ServeConfig(Config):
    """How `lora-c serve` listens, and what it allows."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0: every one of this machine.")
    port: int = Field(8000, ge=0, le=65535, description="Port; 0: a free one, which is printed.")
    served_model_name: str | None = Field(None, description="What requests call the base; default: the name of its folder.")
    max_seq_length: int | None = Field(
        None, gt=0, description="Most tokens of prompt and answer together; default: the model's context, up to 4,096."
    )
    max_num_seqs: int = Field(16, ge=1, le=16, description="Answers that are written at a time; others wait.")
    max_queue: int = Field(128, ge=0, description="Answers that wait at most; beyond that a request gets status 429.")
    prompt_block: int = Field(
        128, ge=16, description="Tokens of a prompt that are read together; whole blocks at its begin are used again."
    )
    precision: Literal["exact", "fast", "int8"] | None = Field(
        None, description="Of all products, as in generate; default: what LORA_C_PRECISION says, else fast."
    )
    adapter_memory: int = Field(1024, gt=0, description="MiB that adapters may take; the least recently used ones leave.")
    max_body: int = Field(2048, gt=0, description="KiB that the body of a request may have.")
    request_timeout: float = Field(600.0, gt=0, description="Seconds after which an answer is broken off.")
    read_timeout: float = Field(
        20.0, gt=0, description="Seconds in which a client must send its request, and take what it is sent."
    )
    drain_timeout: float = Field(60.0, ge=0, description="Seconds that answers under way have after SIGTERM.")
    max_connections: int = Field(512, gt=0, description="Connections at a time.")
    api_key_file: str | None = Field(
        None, description="File of keys, one a line, of which every request must have one; or LORA_C_API_KEY is the key."
    )
    allowed_hosts: list[str] = Field([], description="Names beside localhost and plain addresses that Host may have.")
    cors: list[str] = Field([], description="Origins of other pages that may send requests, as https://a.example; *: all.")

    @field_validator("allowed_hosts", "cors", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value
