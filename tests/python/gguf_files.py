"""GGUF files made by hand: a small Llama with random weights or blocks, and short training on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from device_values import write_values

import lora_c as lc
from lora_c.gguf.format import Kind, Value
from lora_c.gguf.reader import GGUFFile
from lora_c.gguf.tokenizer import tokenizer_of
from lora_c.gguf.writer import GGUFEntry, array, float32, text, uint32, write_gguf
from lora_c.text.tokenizer import Tokenizer

IDS = np.array([1, 5, 9, 2, 30, 7, 11, 4], np.int32)
CU = np.array([0, 8], np.int32)
BLOCKS = {"Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q4_K": (256, 144)}
BLOCKS |= {"Q5_K": (256, 176), "Q6_K": (256, 210)}


def random_blocks(name: str, rows: int, cols: int, rng: np.random.Generator) -> lc.GGMLTensor:
    """Random codes; scales so that weights are about 0.1."""
    values, size = BLOCKS[name]
    blocks = rng.integers(0, 256, (rows * cols // values, size), dtype=np.uint8)
    spread = {"Q8_0": 64, "Q4_0": 4, "Q4_1": 8, "Q5_0": 8, "Q5_1": 16, "Q4_K": 300, "Q5_K": 600, "Q6_K": 1500}[name]
    offsets = {"Q6_K": (208,)}.get(name, (0, 2) if name[-1] in "1K" else (0,))
    for i, offset in enumerate(offsets):
        sign = -1 if name[-1] == "1" and i else 1
        centre = spread / (1 if not i else 8 if name[-1] == "1" else 8)
        scale = (sign * (0.1 + 0.02 * rng.standard_normal(len(blocks))) / centre).astype(np.float16)
        blocks[:, offset : offset + 2] = scale[:, None].view(np.uint8)
    return lc.GGMLTensor.from_blocks(blocks.reshape(-1), (rows, cols), name)


def entry(name: str, value: Any) -> GGUFEntry:
    """A tensor of the file, float32 unless it is blocks."""
    if isinstance(value, lc.GGMLTensor):
        return GGUFEntry(name, value.type, value.shape, lambda: value)
    stored = np.asarray(value, np.float32)
    return GGUFEntry(name, "F32", stored.shape, lambda: stored)


SIZES = {"hidden": 256, "mid": 256, "layers": 2, "heads": 4, "kv": 2, "vocab": 32}


def llama_values(**changes: Any) -> dict[str, Value]:
    """Metadata of a small Llama."""
    sizes = SIZES
    values = {
        "general.architecture": text("llama"), "llama.block_count": uint32(sizes["layers"]),
        "llama.context_length": uint32(64), "llama.embedding_length": uint32(sizes["hidden"]),
        "llama.feed_forward_length": uint32(sizes["mid"]), "llama.attention.head_count": uint32(sizes["heads"]),
        "llama.attention.head_count_kv": uint32(sizes["kv"]), "llama.attention.layer_norm_rms_epsilon": float32(1e-5),
        "llama.rope.freq_base": float32(10000.0), "llama.rope.dimension_count": uint32(64),
    }  # fmt: skip
    return values | changes


def llama_tensors(kind: str | None, seed: int = 0) -> dict[str, Any]:
    """Tensors of a small Llama, its projections in blocks."""
    rng = np.random.default_rng(seed)
    hidden, mid, vocab = SIZES["hidden"], SIZES["mid"], SIZES["vocab"]
    kv = SIZES["kv"] * hidden // SIZES["heads"]
    shapes = {
        "attn_q": (hidden, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden), "attn_output": (hidden, hidden),
        "ffn_gate": (mid, hidden), "ffn_up": (mid, hidden), "ffn_down": (hidden, mid),
    }  # fmt: skip
    tensors: dict[str, Any] = {
        "token_embd.weight": rng.standard_normal((vocab, hidden)) * 0.3,
        "output_norm.weight": 1 + rng.standard_normal(hidden) * 0.1,
    }
    for n in range(SIZES["layers"]):
        for norm in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{n}.{norm}.weight"] = 1 + rng.standard_normal(hidden) * 0.1
        for name, shape in shapes.items():
            value = rng.standard_normal(shape) * 0.06 if kind is None else random_blocks(kind, *shape, rng)
            tensors[f"blk.{n}.{name}.weight"] = value
    return tensors


def write_file(path: Path, values: dict[str, Value], tensors: dict[str, Any]) -> Path:
    """A GGUF file."""
    with open(path, "wb") as file:
        write_gguf(file.write, values, [entry(name, value) for name, value in tensors.items()])
    return path


def train(model: lc.Model, steps: int) -> tuple[list[float], list[np.ndarray]]:
    """A few steps; losses, and the gradients of the first one."""
    model.add_adapter(lc.LoraConfig(r=4, lora_alpha=8, seed=3))
    parameters = model.trainable_parameters()
    rng = np.random.default_rng(1)
    for parameter in parameters:
        write_values(parameter, rng.standard_normal(parameter.shape) * 0.05)
    optimizer = lc.AdamW(parameters, lr=1e-2)
    losses, first = [], []
    targets, weight = np.roll(IDS, -1), np.ones(len(IDS), np.float32)
    for step in range(steps):
        optimizer.zero_grad()
        losses.append(model.decoder.forward_backward(IDS, CU, targets, weight))
        if step == 0:
            first = [np.array(parameter.grad) for parameter in parameters]
        optimizer.step()
    return losses, first


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab", "<u>"]
TYPES = [2, 3, 3, *[6] * 256, 1, 1, 1, 1, 1, 1, 4]


def pieces(tmp_path: Path, drop: str = "", **changes: Value) -> Tokenizer:
    """The tokenizer of a file of SentencePiece's kind; keywords are keys under tokenizer.ggml."""
    values = {
        "model": text("llama"), "tokens": array(PIECES, Kind.STRING),
        "token_type": array(np.array(TYPES, np.int32), Kind.INT32),
        "scores": array(np.array([0.0] * 262 + [-2.0, -1.0, -3.0, 0.0], np.float32), Kind.FLOAT32), "bos_token_id": uint32(1),
        "eos_token_id": uint32(2), "unknown_token_id": uint32(0),
    } | changes  # fmt: skip
    named = {f"tokenizer.ggml.{key}": value for key, value in values.items() if key != drop}
    found = tokenizer_of(GGUFFile(write_file(tmp_path / "t.gguf", named, {"a": np.zeros(1)})))
    assert found is not None
    return found
