"""What /metrics says, in Prometheus' text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from ..generation.batch import Batch

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counts of one server; every name begins with lora_c_."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("lora_c_requests", "Requests by path and status.", ["path", "status"], registry=registry)
        self.prompt_tokens = Counter("lora_c_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.reused_tokens = Counter(
            "lora_c_prompt_tokens_reused", "Tokens of prompts that were not read again.", registry=registry
        )
        self._tokens = Counter("lora_c_generation_tokens", "Tokens that were written.", registry=registry)
        self._running = Gauge("lora_c_answers_running", "Answers that are being written.", registry=registry)
        self._waiting = Gauge("lora_c_answers_waiting", "Answers that wait for a sequence.", registry=registry)
        self.adapters = Gauge("lora_c_adapters_loaded", "Adapters in memory.", registry=registry)
        self.adapter_bytes = Gauge("lora_c_adapter_bytes", "Memory that they take.", registry=registry)
        self.loads = Counter("lora_c_adapter_loads", "Adapters that were read.", registry=registry)
        self.evictions = Counter("lora_c_adapter_evictions", "Adapters that left for others.", registry=registry)
        self.first_token = Histogram(
            "lora_c_time_to_first_token_seconds", "From the request to the first token.", buckets=_SECONDS, registry=registry
        )
        self.duration = Histogram(
            "lora_c_request_seconds", "From the request to its end.", buckets=_SECONDS, registry=registry
        )

    def tokens(self, n: int) -> None:
        """So many were written."""
        self._tokens.inc(n)

    def engine(self, batch: Batch) -> None:
        """What is under way."""
        running = batch.n_running
        self._running.set(running)
        self._waiting.set(len(batch) - running)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)
