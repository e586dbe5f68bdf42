"""Damage to files, as a function of a seeded generator: flipped bits, cuts, wrong counts, hostile JSON."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

GGUF_NAME = re.compile(rb"(?:general|llama|tokenizer|adapter|blk|rope)[0-9a-z_.]+")
Mutation = Callable[[bytes, random.Random], bytes]
NUMBERS = [0, 1, -1, 2, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 10**30, -(2**63)]
VALUES: list[Any] = [
    *NUMBERS, None, True, False, "", "x", "x" * 5000, "\ud800", "\u0000", "../../etc/passwd", "(", ".*", 0.5, -0.0, 1e308,
    float("nan"), float("inf"), [], {}, [[]], [1] * 300, {"": None}, [None], ["x"], {"a": {"b": [1]}},
]  # fmt: skip


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def set_bytes(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    begin = rng.randrange(len(out) + 1)
    for i in range(begin, min(begin + rng.choice([1, 4, 8, 100]), len(out))):
        out[i] = rng.choice([0, 0xFF, 0x7F, 0x80, rng.randrange(256)])
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice([0, 1, 7, 8, 9, len(data) - 1, rng.randrange(len(data) + 1)])]


def remove(data: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(data) + 1)
    return data[:begin] + data[begin + rng.choice([1, 2, 8, 64, 1000]) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(data) + 1)
    return data[:begin] + rng.randbytes(rng.choice([1, 2, 8, 64])) + data[begin:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(data) + 1)
    return data[:begin] + data[begin : begin + rng.choice([1, 16, 500])] * rng.choice([2, 10]) + data[begin:]


def swap(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    n = rng.choice([4, 8, 32])
    return data[:a] + data[b : b + n] + data[a + n : b] + data[a : a + n] + data[b + n :]


def write_count(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    form = rng.choice(["<Q", "<I", "<i", ">Q"])
    begin = rng.choice([0, 4, 8, 16, rng.randrange(len(out) + 1)])
    packed = struct.pack(form, rng.choice(NUMBERS) % 256 ** struct.calcsize(form) if form != "<i" else -1)
    out[begin : begin + len(packed)] = packed
    return bytes(out)


BYTES: list[Mutation] = [flip_bits, set_bytes, cut, remove, insert, repeat, swap, write_count]


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three blind changes."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        data = rng.choice(BYTES)(data, rng)
    return data


def damage_value(value: Any, rng: random.Random) -> Any:
    """A JSON value with one place changed: replaced, removed, doubled, renamed or nested."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    value = json.loads(json.dumps(value))
    walk(value)
    if not places:
        return rng.choice(VALUES)
    node, key = rng.choice(places)
    action = rng.randrange(6)
    if action == 0:
        del node[key]
    elif action == 1 and isinstance(node, dict):
        node[str(key) + rng.choice(["", "_", "x" * 100])] = node.pop(key)
    elif action == 2 and isinstance(node[key], int) and not isinstance(node[key], bool):
        node[key] += rng.choice([-1, 1, 2**32, -node[key] * 2])
    elif action == 3:
        other_node, other_key = rng.choice(places)
        node[key] = json.loads(json.dumps(other_node.get(other_key) if isinstance(other_node, dict) else None))
    elif action == 4 and isinstance(node, list):
        node.extend(node * rng.choice([1, 50]))
    else:
        node[key] = rng.choice(VALUES)
    return value


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """Structure on most draws, bytes on the others; now and then nesting without end or a number of 5,000 digits."""
    draw = rng.random()
    if draw < 0.25:
        return damage_bytes(data, rng)
    text = json.dumps(damage_value(json.loads(data), rng), ensure_ascii=rng.random() < 0.9)
    if draw > 0.98:
        hostile = rng.choice(["[" * 100_000, "9" * 5000, '{"a":' * 50_000, "NaN"])
        text = text.replace(rng.choice([c for c in text if c.isalnum()] or ["x"]), hostile, 1)
    return text.encode("utf-8", "surrogatepass")


def damage_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header's structure on half of the draws, blind changes on the others."""
    if rng.random() < 0.4:
        return damage_bytes(data, rng)
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    for _ in range(rng.choice([1, 1, 2])):
        header = damage_value(header, rng)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    body = data[8 + length :]
    if rng.random() < 0.2:
        body = damage_bytes(body, rng)
    return struct.pack("<Q", len(text) if rng.random() < 0.95 else rng.choice(NUMBERS) % 2**64) + text + body


def damage_gguf(data: bytes, rng: random.Random) -> bytes:
    """Numbers and texts of the header on most draws; blind changes, mostly of the header, on the others."""
    end = max(data.rfind(b"blk."), data.rfind(b"output")) + 64  # the last tensor's name and what follows it
    draw = rng.random()
    if draw < 0.15:
        return damage_bytes(data, rng)
    if draw < 0.5:
        return damage_bytes(data[:end], rng) + data[end:]
    out = bytearray(data)
    names = [match.end() for match in GGUF_NAME.finditer(data, 0, end)]
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.choice(names) + rng.choice([-rng.randrange(1, 12), 0, 0, 4, 4, 8, 12, 16, 20, 24, 28])
        form = rng.choice(["<I", "<I", "<Q"])
        value = rng.choice([*NUMBERS, rng.randrange(14), rng.randrange(45)]) % 256 ** struct.calcsize(form)
        out[at : at + struct.calcsize(form)] = struct.pack(form, value)
    return bytes(out)


def damage_lines(data: bytes, rng: random.Random) -> bytes:
    """One line of a JSONL file."""
    lines = data.split(b"\n")
    i = rng.randrange(len(lines))
    lines[i] = damage_json(lines[i], rng) if lines[i].strip() else damage_bytes(lines[i], rng)
    return b"\n".join(lines)


def mutation_for(name: str) -> Mutation:
    """The damage that reaches deepest into a file of that name."""
    if name.endswith((".json", ".jinja.json")):
        return damage_json
    if name.endswith(".safetensors"):
        return damage_safetensors
    if name.endswith(".gguf"):
        return damage_gguf
    return damage_lines if name.endswith(".jsonl") else damage_bytes
