"""What a LoRALinear without given parameters starts from: PEFT's distribution, drawn by the seed."""

from __future__ import annotations

import numpy as np

from lora_c._core import LoRALinear

N, K, R = 3, 400, 16


def start(seed: int, width: int = K, rank: int = R) -> np.ndarray:
    layer = LoRALinear(np.zeros((N, width), np.float32), rank, seed=seed)
    assert not layer.B.data.any()
    return layer.A.data.copy()


def test_the_start_is_uniform_up_to_the_bound_of_kaiming() -> None:
    values = np.sort(start(7).ravel()) * np.sqrt(K)  # kaiming_uniform with a = sqrt(5): 1 / sqrt(in_features)
    assert -1 <= values[0] < -0.995 and 0.995 < values[-1] <= 1
    np.testing.assert_allclose(np.quantile(values, np.arange(1, 10) / 10), np.arange(-4, 5) / 5, atol=0.05)


def test_every_value_is_drawn_by_the_seed_alone() -> None:
    first = start(7)
    assert np.array_equal(first, start(7)) and np.mean(first == start(8)) < 0.01
    assert len(np.unique(first)) > 0.99 * first.size
    narrow = start(7, width=100, rank=1)  # the same draws, with twice the bound
    assert np.array_equal(narrow[0], 2 * first.ravel()[:100])
