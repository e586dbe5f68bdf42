"""out= and other memory that is written to never lies over what the same object reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lora_c as lc
from lora_c._core import Decoder, GGMLTensor, Parameter

N = 32
BF16 = np.dtype(ml_dtypes.bfloat16)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def blocks(kind: str) -> tuple[np.ndarray, GGMLTensor]:
    raw = np.zeros(N * N * 2 if kind in ("F16", "BF16") else N * N // 32 * 34, np.uint8)
    return raw, GGMLTensor.from_blocks(raw, (N, N), kind)


def cases() -> dict[str, tuple[lc.LoRALinear, np.ndarray, str]]:
    """name -> (layer, memory that it reads, what the error calls it)"""
    f32, bf16, bias = ones(N, N), np.ones((N, N), BF16), ones(1024)
    made: dict[str, tuple[lc.LoRALinear, np.ndarray, str]] = {
        "float32": (lc.LoRALinear(f32, r=2), f32, "base"),
        "bfloat16": (lc.LoRALinear(bf16, r=2), bf16, "base"),
        "bias": (lc.LoRALinear(f32, r=2, bias=bias[512 : 512 + N]), bias, "bias"),
    }
    for kind in ("F16", "BF16", "Q8_0"):
        raw, tensor = blocks(kind)
        made[kind] = (lc.LoRALinear(tensor, r=2), raw, "base")
    base, vector = Parameter(ones(N, N)), Parameter(ones(N))
    layer = lc.LoRALinear(base, r=N, bias=vector, use_dora=True)
    for name, p in {"base": base, "A": layer.A, "B": layer.B}.items():
        made[f"Parameter {name}"] = (layer, p.data, name)
        made[f"gradient {name}"] = (layer, p.grad, f"{name}.grad")
    return made


CASES = cases()


def inside(memory: np.ndarray, rows: int) -> np.ndarray:
    """(rows, N) float32 somewhere in a piece of memory."""
    words = memory.reshape(-1).view(np.uint8)[: memory.nbytes // 4 * 4].view(np.float32)
    at = max(0, (words.size - rows * N) // 2)
    return words[at : at + rows * N].reshape(rows, N)


@pytest.mark.parametrize("name", CASES)
def test_out_of_a_layer(name: str) -> None:
    layer, memory, shown = CASES[name]
    before, x = memory.copy(), ones(8, N)
    for call in (
        lambda out: layer.forward(x, out=out),
        lambda out: layer.backward(x, x, out=out),
        lambda out: layer(x, out=out),
    ):
        with pytest.raises(
            ValueError, match=f"^out: expected memory apart from {shown}, got overlapping buffers; use a new array"
        ):
            call(inside(memory, 8))
    assert memory.tobytes() == before.tobytes()


def test_inputs_of_backward_in_the_memory_of_a_gradient() -> None:
    layer, x = lc.LoRALinear(ones(N, N), r=N), ones(N, N)
    for call, name in (
        (lambda: layer.backward(x, layer.A.grad), "x: expected memory apart from A.grad"),
        (lambda: layer.backward(layer.B.grad, x), "dy: expected memory apart from B.grad"),
    ):
        with pytest.raises(ValueError, match=name):
            call()
    layer.forward(layer.A.data)  # reading what is read is fine


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_dequantize_over_its_own_blocks(kind: str) -> None:
    raw = np.zeros(N * N * 4, np.uint8)
    used = N * N * 2 if kind != "Q8_0" else N * N // 32 * 34
    tensor = GGMLTensor.from_blocks(raw[:used], (N, N), kind)
    with pytest.raises(ValueError, match="out: expected memory apart from the tensor"):
        tensor.dequantize(out=raw.view(np.float32).reshape(N, N))
    assert not raw.any()


def test_token_loss_over_the_weights_of_a_decoder() -> None:
    shapes = {"embed_tokens": (16, 8), "norm": (8,)} | {
        f"layers.0.{name}": shape
        for name, shape in {
            "input_layernorm": (8,), "post_attention_layernorm": (8,), "q_proj": (8, 8), "k_proj": (4, 8), "v_proj": (4, 8),
            "o_proj": (8, 8), "gate_proj": (32, 8), "up_proj": (32, 8), "down_proj": (8, 32),
        }.items()
    }  # fmt: skip
    model = Decoder(
        hidden_size=8, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
        vocab_size=16, max_position_embeddings=16, norm_eps=1e-5, tie_word_embeddings=True,
    )  # fmt: skip
    read: list[Any] = []
    for name, shape in shapes.items():
        weight = np.ones(shape, np.float32)
        model.set_weight(name, weight)
        read.append(weight)
    gate = Parameter(ones(32, 8))
    model.set_weight("layers.0.gate_proj", gate)
    A, B = Parameter(ones(2, 8)), Parameter(ones(8, 2))
    model.set_adapter("layers.0.q_proj", A, B, scale=1.0)
    read = (
        [w for name, w in zip(shapes, read, strict=True) if name != "layers.0.gate_proj"]
        + [p.data for p in (gate, A, B)]
        + [A.grad]
    )
    ids = np.array([1, 2, 3])
    batch: Callable[[Any], Any] = lambda out: model.loss(ids, [0, 3], ids, ones(3), token_loss=out)  # noqa: E731
    for weight in read:
        with pytest.raises(ValueError, match="token_loss: expected memory apart from the weights"):
            batch(weight.reshape(-1)[1:4])
    replaced = read[0]
    model.set_weight("embed_tokens", ones(16, 8))
    batch(replaced.reshape(-1)[:3])  # no longer a weight
    losses = np.zeros(3, np.float32)
    assert np.isclose(batch(losses), losses.sum())
