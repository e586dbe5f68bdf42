"""LoRA's formulas in NumPy beside `LoRALinear`: forward, gradients, merge; then the training loop of examples/c/one_layer.c.

python examples/linear_layer.py
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import lora_c as lc

TOKENS, IN, OUT, RANK, STEPS = 32, 48, 8, 2, 100


def numbers(shape: tuple[int, ...], factor: int) -> NDArray[np.float32]:
    """Numbers between -1 and 1 that look random and are the same in every language."""
    i = np.arange(np.prod(shape))
    return (((i * i + factor * i) % 251 - 125) / 128).astype(np.float32).reshape(shape)


def compare(W: NDArray[np.float32], x: NDArray[np.float32]) -> None:
    """LoRA, arXiv:2106.09685: eq. 3, its gradients by the chain rule, and the merged weight of section 4.1."""
    layer = lc.LoRALinear(W, r=RANK, lora_alpha=2 * RANK, seed=1)  # A starts random, B at zero
    A, B, s = layer.A.data, layer.B.data, layer.scaling  # s = lora_alpha / r
    B[...] = numbers(B.shape, 5)  # as if it had been trained
    g = numbers((TOKENS, OUT), 7)  # the gradient that comes from above
    dx = layer.backward(g, x)  # adds to A.grad and B.grad
    pairs = {
        "y  = x W^T + s (x A^T) B^T": (layer.forward(x), x @ W.T + s * (x @ A.T) @ B.T),
        "dA = s (g B)^T x": (layer.A.grad, s * (g @ B).T @ x),
        "dB = s g^T (x A^T)": (layer.B.grad, s * g.T @ (x @ A.T)),
        "dx = g W + s (g B) A": (dx, g @ W + s * (g @ B) @ A),
        "merged = W + s B A": (layer.merge(), W + s * B @ A),
    }
    for formula, (ours, paper) in pairs.items():
        print(f"{formula:28} largest difference {np.abs(ours - paper).max() / np.abs(paper).max():.1e} of the largest entry")


def train(W: NDArray[np.float32], x: NDArray[np.float32]) -> None:
    """A layer with some A and B makes the targets; from another A and B = 0 they have to be found again."""
    teacher = lc.LoRALinear(W, r=RANK, lora_alpha=2 * RANK, seed=1)
    teacher.B.data[...] = numbers(teacher.B.shape, 5)
    target, layer = teacher(x), lc.LoRALinear(W, r=RANK, lora_alpha=2 * RANK, seed=2)
    optimizer = lc.AdamW(layer.parameters(), lr=0.02)
    for step in range(1, STEPS + 1):
        error = layer.forward(x) - target  # the gradient of 1/2 |y - target|^2
        optimizer.zero_grad()
        layer.backward(error, x)
        optimizer.step(grad_scale=1 / TOKENS)
        if step == 1 or step % 20 == 0:
            print(f"step {step:3}  loss {lc.ops.sum_of_squares(error) / (2 * TOKENS):.9g}")
    for n, row in enumerate(layer.B.data):
        print(f"B[{n}]  " + "  ".join(f"{value:12.9g}" for value in row))


if __name__ == "__main__":
    compare(numbers((OUT, IN), 1), numbers((TOKENS, IN), 3))
    train(numbers((OUT, IN), 1), numbers((TOKENS, IN), 3))
