"""Requests that are almost right: bytes and fields of good ones, changed at random."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from typing import Any

_MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
GOOD: list[tuple[str, str, Any]] = [
    ("POST", "/v1/chat/completions", {"model": "a", "messages": _MESSAGES, "max_tokens": 2, "temperature": 0, "stop": ["x"]}),
    ("POST", "/v1/chat/completions", {"messages": _MESSAGES, "max_tokens": 2, "stream": True, "n": 2, "seed": 1,
                                      "logprobs": True, "top_logprobs": 2, "stream_options": {"include_usage": True}}),
    ("POST", "/v1/chat/completions", {"messages": _MESSAGES, "max_tokens": 2, "tools": [{"type": "function", "function": {
        "name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}}], "tool_choice": "auto"}),
    ("POST", "/v1/completions", {"model": "b", "prompt": ["Once", "upon"], "max_tokens": 2, "echo": True, "top_p": 0.5}),
    ("POST", "/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 2, "logprobs": 1, "min_p": 0.1, "top_k": 4}),
    ("POST", "/v1/embeddings", {"model": "a", "input": ["Hello", "there"], "encoding_format": "base64"}),
    ("POST", "/v1/load_lora_adapter", {"lora_name": "c", "lora_path": "a"}),
    ("POST", "/v1/unload_lora_adapter", {"lora_name": "c"}),
    ("POST", "/tokenize", {"messages": _MESSAGES, "return_token_strs": True}),
    ("POST", "/detokenize", {"tokens": [1, 2, 3]}),
    ("GET", "/v1/models/a", None), ("GET", "/v1/models", None), ("GET", "/health", None), ("GET", "/metrics", None),
    ("GET", "/", None), ("OPTIONS", "/v1/completions", None),
]  # fmt: skip
# Values of every kind in the place of any value.
_VALUES: list[Any] = [
    None, True, -1, 0, 1, 16, 10**6, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, "", "a", "../a", "/etc/passwd", "a\0",
    "\ud800", "é😀\u202e", "x" * 3000, [], [[]], [None], [[1], "a"], {}, {"role": "user"}, {"a": {"b": []}}, "auto", [2**40],
    [-1],
]  # fmt: skip
_PIECES = [
    b"\r\n", b"\n", b"\0", b"\xff\xfe", b"%00", b"%2e%2e/", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n",
    b"Content-Length: -1\r\n", b"Host: evil.example\r\n", b"Expect: 100-continue\r\n", b"Origin: null\r\n",
    b"Upgrade: h2c\r\n", b"A" * 70_000, b": ", b"HTTP/0.9", b"NaN", b"[" * 5000, b'"', b"{", b"}", b"\\u0000", b"\\ud800",
    b"GET / HTTP/1.1\r\n\r\n", b"0\r\n\r\n", b"ffffffffff\r\n", b"Connection: keep-alive\r\n",
]  # fmt: skip
_PATHS = ["../", "//", "%2f", "?x=1", "#a", "%", ";", "\\", "/../../etc/passwd", "%00", "*", " ", "é"]


def mutated(rng: random.Random) -> bytes:
    """One request, and sometimes what is none."""
    method, path, body = rng.choice(GOOD)
    body = deepcopy(body)
    if body is not None and rng.random() < 0.6:
        for _ in range(rng.randint(1, 3)):
            _change_a_field(body, rng)
    if rng.random() < 0.15:
        at = rng.randint(0, len(path))
        path = path[:at] + rng.choice(_PATHS) + path[at:]
    if rng.random() < 0.05:
        method = rng.choice(["PUT", "DELETE", "HEAD", "TRACE", "CONNECT", "get", "PO ST", "X" * 300])
    data = b"" if body is None else _written(body, rng)
    length = b"" if body is None and rng.random() < 0.9 else b"Content-Length: %d\r\n" % len(data)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode() + length
    request = head + b"\r\n" + data
    if rng.random() < 0.5:
        for _ in range(rng.randint(1, 4)):
            request = _change_bytes(request, rng)
    return request


def _written(body: Any, rng: random.Random) -> bytes:
    text = json.dumps(body, ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def _change_a_field(body: Any, rng: random.Random) -> None:
    """In any depth: another value, a field more, a field less."""
    place: Any = body
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(place[key], (dict, list)) and rng.random() < 0.6:
            place = place[key]
            continue
        break
    kind = rng.random()
    if kind < 0.7:
        place[key] = deepcopy(rng.choice(_VALUES))
    elif kind < 0.85:
        del place[key]
    elif isinstance(place, dict):
        place[rng.choice(["model", "n", "prompt", "messages", "max_tokens", "stop", "seed", "lora_path", "no such"])] = (
            deepcopy(rng.choice(_VALUES))
        )
    else:
        place.append(deepcopy(rng.choice(_VALUES)))


def _change_bytes(request: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(request) + 1)
    kind = rng.random()
    if kind < 0.3:
        return request[:at] + rng.choice(_PIECES) + request[at:]
    if kind < 0.5:
        return request[:at] + bytes([rng.randrange(256)]) + request[at + 1 :]
    if kind < 0.7:
        return request[:at] + request[at + rng.randint(1, 20) :]
    if kind < 0.8:
        return request[:at]
    other = at + rng.randint(1, 60)
    return request[:other] + request[at:other] + request[other:]
